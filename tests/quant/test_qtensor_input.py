"""What tensors of every number format do at the edges: constants, extremes, groups of one, and input that is refused."""

from __future__ import annotations

import pytest
import torch

from haqsearch.errors import DataError, PolicyError
from haqsearch.quant import QTensor, encode
from haqsearch.spec import Format

from .tensors import EVERY, same, tensor


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_nan_infinity_and_emptiness_are_refused(format):
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(DataError, match=r"of shape \[2, 3\] that holds NaN or infinity"):
            encode(torch.tensor([[1.0, 2.0, bad], [0.0, 0.0, 0.0]]), format)
    for shape in ((0,), (0, 3), (3, 0)):
        with pytest.raises(DataError, match="empty tensor"):
            encode(torch.zeros(shape), format)


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_constants_and_zeros_are_exact(format):
    """A constant is an end of its range. -0.75 has digits few enough for mx, mxfp, mxint, and the one sign that int1 has."""
    zeros = encode(torch.zeros(3, 20), format)
    assert not zeros.dequantize().any() and all(bool(torch.isfinite(p).all()) for p in zeros.parameters.values())
    x = torch.full((3, 20), -0.75)
    assert torch.allclose(encode(x, format).dequantize(), x, rtol=1e-6)
    rows = torch.randn((3, 20), generator=torch.Generator().manual_seed(0))
    rows[1] = 0.0
    kept = encode(rows, format).dequantize()
    assert format.kind == "kmeans" or not kept[1].any()  # a codebook of all channels need not hold zero


@pytest.mark.parametrize("kind", ["int", "uint"])
def test_a_group_of_one_element_is_exact(kind):
    x = tensor((3, 7), 5)
    assert torch.allclose(encode(x, f"{kind}2:group=1").dequantize(), x, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int", "uint"])
def test_a_group_that_does_not_divide_leaves_a_shorter_one(kind):
    """And groups never reach from one channel into the next."""
    x = tensor((2, 3, 7), 6)
    found = encode(x, f"{kind}3:group=16")
    assert found.parameters["scale"].shape == (2, 2)
    for row, kept in zip(x.reshape(2, 21), found.dequantize().reshape(2, 21), strict=True):
        parts = [encode(part, f"{kind}3:tensor").dequantize() for part in (row[:16], row[16:])]
        assert torch.equal(kept, torch.cat(parts))
    longer = encode(x, f"{kind}3:group=1000")
    assert torch.equal(longer.dequantize(), encode(x, f"{kind}3:channel").dequantize())


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_the_largest_and_the_least_floats_stay_finite(format):
    huge = torch.tensor([[3.4e38, -1.0, 1e-38], [1e-45, 0.0, -1e-45]])
    for x in (huge, huge[:, 2:] * 1e-3, torch.full((1, 3), torch.finfo(torch.float32).max)):
        q = encode(x, format)
        assert bool(torch.isfinite(q.dequantize()).all())
        assert same(QTensor.unpack(q.pack(), q.format, q.shape), q)


def test_a_scale_rounded_up_does_not_carry_the_largest_float_beyond_itself():
    largest = torch.finfo(torch.float32).max
    for width in range(2, 17):
        for sign in (1, -1):
            kept = encode(torch.tensor([sign * largest]), f"int{width}").dequantize()
            assert abs(float(kept)) == pytest.approx(largest, rel=1e-6)


def test_the_threshold_of_ternary_is_seven_tenths_of_the_mean_magnitude():
    """Means of 0.9146 and 0.9075: 0.6585 is 0.72 of one, 0.63 is 0.694 of the other."""
    assert encode(torch.tensor([1, -1, 1, -0.6585]), "ternary").codes.tolist() == [1, -1, 1, -1]
    assert encode(torch.tensor([1, -1, 1, -0.63]), "ternary").codes.tolist() == [1, -1, 1, 0]


def test_a_range_beyond_float32_is_refused():
    with pytest.raises(DataError, match="beyond float32"):
        encode(torch.tensor([3.4e38, -3.4e38]), "uint1")


def test_other_number_types_are_read_as_float32_or_refused():
    whole = torch.tensor([[1, -2], [3, 0]])
    assert torch.equal(encode(whole, "float32").dequantize(), whole.float())
    assert torch.equal(encode(whole.double(), "int8").dequantize(), encode(whole.float(), "int8").dequantize())
    with pytest.raises(DataError, match="NaN or infinity as float32"):
        encode(torch.tensor([1e300], dtype=torch.float64), "int8")
    with pytest.raises(DataError, match="complex"):
        encode(torch.zeros(2, dtype=torch.complex64), "int8")


@pytest.mark.parametrize(
    "text", ["int0", "int17", "int17:tensor", "uint0:group=4", "kmeans9", "mx5", "int4:group=0", "vsq4:group=8"]
)
def test_bits_out_of_range_are_refused(text):
    with pytest.raises(PolicyError, match="unknown number format"):
        encode(torch.ones(3), text)


@pytest.mark.parametrize(
    "format",
    [Format("mx", 5), Format("float", 64), Format("int", 4, "group"), Format("int", 4, "row"), Format("nf", 4), 4],
)
def test_a_format_made_by_hand_that_is_none_is_refused(format):
    with pytest.raises(PolicyError, match="unknown number format"):
        encode(torch.ones(3), format)


def test_the_tensor_itself_stays_as_it_was():
    x = tensor((3, 17), 8)
    before = x.clone()
    for format in EVERY:
        q = encode(x, format)
        q.pack(), q.dequantize().mul_(2)
        assert same(q, encode(x, format))
    assert torch.equal(x, before)
