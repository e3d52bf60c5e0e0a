from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.quant import quantize_weight, round_stochastic, symmetric_params
from haqsearch.quant.weights import encode_weight
from haqsearch.spec import FLOAT32, Format

from .laws import laws

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(2, 8)
shapes = st.sampled_from([(1, 1), (3, 7), (4, 3, 3, 3), (5, 1, 3, 3), (2, 300)])
draws = st.sampled_from(["bell", "heavy", "flat", "sparse"])


def _weights(shape, seed, kind="bell"):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    if kind == "heavy":
        w = w**3
    elif kind == "flat":
        w = torch.rand(shape, generator=g) * 2 - 1
    elif kind == "sparse":
        w = w * (torch.rand(shape, generator=g) < 0.3)
    return w


def _error(w, q):
    """Squared error per channel, in double precision."""
    return (
        (q.codes.double() * q.scale.double().reshape(-1, *[1] * (w.ndim - 1)) - w.double()).square().flatten(1).sum(1)
    )


@laws
@given(shapes, seeds, draws, widths)
def test_the_search_never_does_worse_than_min_max(shape, seed, kind, width):
    w, format = _weights(shape, seed, kind), Format("int", width)
    plain = encode_weight(w, symmetric_params(w.abs().flatten(1).amax(1), format), format)
    assert bool((_error(w, quantize_weight(w, format)) <= _error(w, plain)).all())


@laws
@given(shapes, seeds, draws, st.sampled_from([(2, 3), (2, 4), (2, 8), (3, 5), (3, 7), (4, 7)]))
def test_more_bits_never_raise_the_error_where_the_finer_grid_holds_the_coarser(shape, seed, kind, widths):
    """Codes of b bits over a range are among those of B bits where 2**(b-1) - 1 divides 2**(B-1) - 1."""
    w = _weights(shape, seed, kind)
    few, many = (_error(w, quantize_weight(w, Format("int", width))).sqrt() for width in widths)
    float32 = 2.0**-22 * w.double().flatten(1).norm(dim=1)  # the scales are rounded to it
    assert bool((many <= few + float32).all())


@settings(laws, max_examples=8)
@given(seeds, st.sampled_from(["bell", "heavy", "flat"]))
def test_each_bit_more_lowers_the_error_of_a_real_sized_layer(seed, kind):
    w = _weights((8, 16, 3, 3), seed, kind)
    errors = [float(_error(w, quantize_weight(w, Format("int", width))).sum()) for width in range(2, 9)]
    assert all(more < less for less, more in itertools.pairwise(errors))


@laws
@given(shapes, seeds, draws, widths)
def test_codes_are_in_the_format_and_nearest(shape, seed, kind, width):
    w, format = _weights(shape, seed, kind), Format("int", width)
    q = quantize_weight(w, format)
    assert q.codes.dtype == torch.int8
    assert q.scale.dtype == torch.float32
    assert q.codes.shape == w.shape
    assert q.scale.shape == shape[:1]
    scale = q.scale.double().reshape(-1, *[1] * (w.ndim - 1))
    for other in (-1, 1):
        moved = (q.codes.double() + other).clamp(format.code_min, format.code_max)
        assert bool(((q.codes * scale - w).abs() <= (moved * scale - w).abs() + 1e-12).all())
    assert int(q.codes.min()) >= format.code_min
    assert int(q.codes.max()) <= format.code_max


@laws
@given(shapes, seeds, draws, widths)
def test_quantizing_what_was_quantized_at_its_scale_changes_nothing(shape, seed, kind, width):
    q = quantize_weight(_weights(shape, seed, kind), Format("int", width))
    assert torch.equal(encode_weight(q.dequantize(), q.scale, q.format).codes, q.codes)


@laws
@given(shapes, seeds, widths, st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_scales_and_leaves_the_codes(shape, seed, width, exponent):
    w, format = _weights(shape, seed), Format("int", width)
    q, scaled = quantize_weight(w, format), quantize_weight(w * 2.0**exponent, format)
    assert torch.equal(q.codes, scaled.codes)
    assert torch.equal(q.scale * 2.0**exponent, scaled.scale)


@laws
@given(shapes, seeds, widths)
def test_the_sign_of_the_weights_is_the_sign_of_the_codes(shape, seed, width):
    w, format = _weights(shape, seed), Format("int", width)
    assert torch.equal(quantize_weight(-w, format).codes, -quantize_weight(w, format).codes)


@laws
@given(seeds, widths, st.permutations(range(4)))
def test_channels_do_not_see_each_other(seed, width, order):
    w, format = _weights((4, 3, 3, 3), seed), Format("int", width)
    q, permuted = quantize_weight(w, format), quantize_weight(w[order], format)
    assert torch.equal(q.codes[order], permuted.codes)
    assert torch.equal(q.scale[order], permuted.scale)


@pytest.mark.parametrize("width", range(2, 9))
def test_zero_channels_are_zero_at_scale_one(width):
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    w[1] = 0
    q = quantize_weight(w, Format("int", width))
    assert float(q.scale[1]) == 1.0
    assert q.codes[1].tolist() == [0] * 5
    assert q.dequantize()[1].tolist() == [0.0] * 5
    assert quantize_weight(torch.zeros(2, 2), Format("int", width)).codes.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused_with_the_layer(bad):
    w = torch.ones(2, 3)
    w[1, 2] = bad
    with pytest.raises(DataError, match=r"^layer3\.conv: the weights hold NaN or infinity"):
        quantize_weight(w, Format("int", 4), "layer3.conv")


@pytest.mark.parametrize("format", [Format("uint", 4), Format("int", 9), FLOAT32], ids=str)
def test_formats_that_weights_cannot_have_are_refused_with_the_layer(format):
    with pytest.raises(DataError, match=rf"^head: weights cannot be {format}; they are int2\.\.int8"):
        quantize_weight(torch.ones(2, 3), format, "head")


def test_the_weights_given_are_left_alone():
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = w.detach().clone()
    q = quantize_weight(w, Format("int", 3))
    assert torch.equal(w, before)
    assert not q.codes.requires_grad and not q.scale.requires_grad


@laws
@given(shapes, seeds, draws, widths)
def test_one_scale_for_the_tensor_is_the_scale_of_the_tensor_as_one_channel(shape, seed, kind, width):
    w = _weights(shape, seed, kind)
    by_tensor = quantize_weight(w, Format("int", width, "tensor"))
    one = quantize_weight(w.reshape(1, -1), Format("int", width))
    assert by_tensor.scale.tolist() == one.scale.tolist() * len(w)
    assert torch.equal(by_tensor.codes.reshape(1, -1), one.codes)


@laws
@given(st.integers(0, 2**32 - 1), st.floats(-100, 100))
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(seed, x):
    rounded = round_stochastic(torch.full((4000,), x, dtype=torch.float64), torch.Generator().manual_seed(seed))
    assert set(rounded.tolist()) <= {math.floor(x), math.ceil(x)}
    fraction = x - math.floor(x)
    assert abs(float(rounded.mean()) - x) <= 5 * math.sqrt(fraction * (1 - fraction) / 4000) + 5 / 4000


def test_stochastic_rounding_is_fixed_by_its_generator():
    x = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 9
    one, two, other = (round_stochastic(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
    whole = torch.arange(-8.0, 9.0)
    assert torch.equal(round_stochastic(whole, torch.Generator()), whole)


@pytest.mark.parametrize("granularity", ["", "tensor"])
@pytest.mark.parametrize("width", [2, 8])
def test_zeros_constants_and_single_weights_are_exact(granularity, width):
    format = Format("int", width, granularity)
    for w in (torch.zeros(3, 4), torch.full((3, 4), -0.7), torch.tensor([[2.5]]), torch.full((1, 1, 3, 3), 1e-30)):
        made = quantize_weight(w, format)
        assert bool((made.scale > 0).all()) and made.scale.shape == (len(w),)
        torch.testing.assert_close(made.dequantize(), w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_no_weights_are_refused_by_name(shape):
    with pytest.raises(DataError, match="layer x: there are no weights"):
        quantize_weight(torch.zeros(shape), Format("int", 8), "layer x")


@pytest.mark.parametrize(
    "text", ["int9:group=4", "int1:group=4", "uint4:group=4", "int9:tensor", "int1", "uint8", "bfloat16"]
)
def test_what_programs_do_not_store_is_refused(text):
    with pytest.raises(DataError, match=rf"weights cannot be {text}; they are"):
        quantize_weight(torch.ones(2, 4), Format.of(text))
