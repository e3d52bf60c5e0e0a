"""Weights with a codebook, as programs have them: k-means, binary and ternary in integer codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.quant import encode, quantize_weight
from haqsearch.spec import Format

from .laws import laws

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1, 1), (3, 7), (4, 3, 3, 3), (5, 1, 3, 3), (2, 300)])
books = st.sampled_from([*(f"kmeans{width}" for width in range(1, 9)), "binary", "ternary"])


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@laws
@given(shapes, seeds, st.integers(1, 8))
@example((3, 7), 331, 3)  # its book has an entry that no weight takes, and that is the largest
def test_kmeans_has_few_codes_one_scale_and_the_nearest_of_them(shape, seed, width):
    w = drawn(shape, seed)
    q = quantize_weight(w, Format("kmeans", width))
    levels = torch.unique(q.codes)
    assert len(levels) <= 2**width
    assert q.codes.dtype == torch.int8 and int(q.codes.abs().max()) == 127
    assert torch.equal(q.scale, q.scale[:1].expand(len(w)))
    steps = w.double() / float(q.scale[0])
    nearest = (steps[..., None] - levels.double()).abs().amin(-1)
    assert torch.allclose((steps - q.codes.double()).abs(), nearest)


@laws
@given(shapes, seeds, st.integers(1, 8))
def test_the_codes_are_the_float_codebook_rounded_to_a_127th_of_its_largest(shape, seed, width):
    """How much is lost against the float32 centroids: no weight more than half a code."""
    w = drawn(shape, seed)
    exact = encode(w, f"kmeans{width}").dequantize()
    q = quantize_weight(w, Format("kmeans", width))
    lost = (w - q.dequantize()).abs() - (w - exact).abs()
    assert float(lost.max()) <= 0.5001 * float(q.scale[0])


@pytest.mark.parametrize("width", range(2, 7))
def test_kmeans_errs_less_than_integers_of_one_scale(width):
    w = drawn((32, 16, 3, 3), 1)
    kmeans, linear = (
        float((w - quantize_weight(w, Format.parse(text)).dequantize()).square().mean())
        for text in (f"kmeans{width}", f"int{width}:tensor")
    )
    assert kmeans < linear


@pytest.mark.parametrize("width", [7, 8])
def test_seven_and_eight_bits_are_really_quantized(width):
    """HAQ leaves layers of more than 2**6 centroids in floating point as it trains and validates (quantize_env.py:313)."""
    w = drawn((32, 16, 3, 3), 1)
    q = quantize_weight(w, Format("kmeans", width))
    assert 2**6 < len(torch.unique(q.dequantize())) <= 2**width
    assert not torch.equal(q.dequantize(), w)


@laws
@given(shapes, seeds, st.sampled_from(["binary", "ternary"]))
def test_signs_are_those_of_the_tensor_format(shape, seed, text):
    w = drawn(shape, seed)
    q = quantize_weight(w, Format.parse(text))
    assert torch.equal(q.dequantize(), encode(w, text).dequantize())
    assert set(q.codes.unique().tolist()) <= ({-1, 1} if text == "binary" else {-1, 0, 1})


@laws
@given(shapes, seeds, books)
def test_encoding_what_was_decoded_changes_nothing(shape, seed, text):
    q = quantize_weight(drawn(shape, seed), Format.parse(text))
    assert torch.equal(q.encode(q.dequantize()).codes, q.codes)
    again = q.encode(drawn(shape, seed + 1))
    # A codebook stays what it is; ternary weights are of any sign, whatever those that gave the scale were.
    known = {-1, 0, 1} if text == "ternary" else set(q.codes.unique().tolist())
    assert set(again.codes.unique().tolist()) <= known


@pytest.mark.parametrize("text", ["kmeans1", "kmeans3", "kmeans8", "binary", "ternary"])
def test_zeros_constants_and_bad_numbers(text):
    format = Format.parse(text)
    zeros = quantize_weight(torch.zeros(3, 4), format)
    assert not zeros.dequantize().any() and bool((zeros.scale > 0).all())
    same = quantize_weight(torch.full((3, 4), -0.3), format)
    assert torch.allclose(same.dequantize(), torch.full((3, 4), -0.3))
    some = torch.cat([torch.zeros(1, 4), torch.randn(2, 4)])
    assert not quantize_weight(some, format).dequantize()[0].any() or text.startswith("kmeans")
    for bad in (torch.tensor([[1.0, float("nan")]]), torch.empty(0, 3)):
        with pytest.raises(DataError):
            quantize_weight(bad, format)
