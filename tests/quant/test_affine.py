from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import DataError, PolicyError
from haqsearch.quant import QParams, affine_params, dequantize, quantize, storage_dtype, symmetric_params
from haqsearch.spec import FLOAT32, Format

from .laws import laws

formats = st.sampled_from([*(Format("int", b) for b in range(2, 17)), *(Format("uint", b) for b in range(1, 17))])
reals = st.floats(-(2.0**40), 2.0**40, width=32)


@st.composite
def ranges(draw):
    """Ranges whose size is a normal float32 number, one-sided and two-sided."""
    low, high = sorted([draw(reals), draw(reals)])
    if max(abs(low), abs(high)) < 1e-20:
        high = 1.0
    return low, high


def _floats(low, high, n=257):
    """Float32 values inside [low, high], both ends and (where it is inside) zero among them."""
    inside = np.concatenate([np.linspace(low, high, n), [0.0]]).astype(np.float32)
    return torch.from_numpy(inside.clip(np.float32(low), np.float32(high)))


def _slack(params):
    """What float32 may add to half a step: the quotient, the scale and the product each err by 2**-24 of the value."""
    return params.scale * (0.5 + 4 * params.format.code_max * 2.0**-24)


@laws
@given(ranges(), formats)
def test_a_value_inside_the_range_moves_by_half_a_step_at_most(bounds, format):
    params = affine_params(*bounds, format)
    x = _floats(min(bounds[0], 0.0), max(bounds[1], 0.0))
    error = (x.double() - dequantize(quantize(x, params), params).double()).abs()
    assert float(error.max()) <= _slack(params)


@laws
@given(ranges(), formats)
def test_zero_is_exact(bounds, format):
    params = affine_params(*bounds, format)
    assert format.code_min <= params.zero_point <= format.code_max
    code = quantize(torch.tensor([0.0, -0.0]), params)
    assert code.tolist() == [params.zero_point] * 2
    assert dequantize(code, params).tolist() == [0.0, 0.0]


@laws
@given(ranges(), formats)
def test_quantizing_what_was_quantized_changes_nothing(bounds, format):
    params = affine_params(*bounds, format)
    codes = torch.arange(format.code_min, format.code_max + 1, max(1, format.code_max // 500))
    assert torch.equal(quantize(dequantize(codes, params), params).long(), codes)


@laws
@given(ranges(), formats, st.integers(-30, 30))
def test_scaling_by_a_power_of_two_scales_the_scale_and_leaves_the_codes(bounds, format, exponent):
    factor = 2.0**exponent
    params, scaled = affine_params(*bounds, format), affine_params(bounds[0] * factor, bounds[1] * factor, format)
    assert (scaled.scale, scaled.zero_point) == (params.scale * factor, params.zero_point)
    x = _floats(*bounds)
    assert torch.equal(quantize(x, params), quantize(x * factor, scaled))


@laws
@given(ranges(), formats)
def test_codes_follow_the_order_of_the_values_and_stay_in_the_format(bounds, format):
    params = affine_params(*bounds, format)
    x = _floats(bounds[0], bounds[1]).sort().values
    codes = quantize(torch.cat([torch.tensor([-torch.inf]), x * 3, torch.tensor([torch.inf])]).sort().values, params)
    assert codes.dtype == storage_dtype(format)
    assert int(codes[0]) == format.code_min
    assert int(codes[-1]) == format.code_max
    assert bool((codes.long().diff() >= 0).all())


@laws
@given(ranges(), formats)
def test_the_scale_is_a_positive_float32(bounds, format):
    params = affine_params(*bounds, format)
    assert params.scale > 0
    assert float(np.float32(params.scale)) == params.scale
    assert QParams(format, 0.1, 0).scale == float(np.float32(0.1)) != 0.1


@laws
@given(st.floats(0, 1e6, width=32), st.integers(1, 16))
def test_after_relu_the_zero_point_is_zero(high, width):
    params = affine_params(0.0, high, Format("uint", width))
    assert params.zero_point == 0


@laws
@given(ranges(), st.integers(2, 16))
def test_signed_formats_are_symmetric(bounds, width):
    format = Format("int", width)
    params = affine_params(*bounds, format)
    assert params.zero_point == 0
    assert params == affine_params(-bounds[1], -bounds[0], format)
    assert params.scale == pytest.approx(max(abs(b) for b in bounds) / format.code_max, rel=1e-6)


@pytest.mark.parametrize("format", [Format("int", 4), Format("uint", 8)], ids=str)
def test_a_range_without_extent_gets_scale_one(format):
    assert affine_params(0.0, 0.0, format).scale == 1.0
    assert affine_params(0.0, 1e-44, format).scale == 1.0  # a scale below the smallest normal float32
    assert quantize(torch.zeros(3), affine_params(0.0, 0.0, format)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("format", [Format("int", 4), Format("uint", 8)], ids=str)
@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.0, -1.0, "reversed"),
        (2.0, 1.0, "reversed"),
        (math.nan, 1.0, "not finite"),
        (0.0, math.nan, "not finite"),
        (-math.inf, 1.0, "not finite"),
        (0.0, math.inf, "not finite"),
        (-1.7e308, 1.7e308, "beyond float32"),
    ],
)
def test_a_range_that_is_none_is_refused(low, high, said, format):
    with pytest.raises(DataError, match=said):
        affine_params(low, high, format)


def test_the_largest_floats_can_be_quantized_where_the_scale_is_a_float():
    largest = torch.finfo(torch.float32).max
    assert math.isfinite(affine_params(-largest, largest, Format("uint", 8)).scale)
    with pytest.raises(DataError, match="beyond float32"):
        affine_params(-largest, largest, Format("uint", 1))


def test_rounding_is_half_to_even():
    params = QParams(Format("int", 4), 1.0, 0)
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]), params).tolist() == [0, 2, 2, 0, -2, -2]


def test_a_float_format_has_no_parameters():
    with pytest.raises(PolicyError, match="no integer codes"):
        affine_params(0.0, 1.0, FLOAT32)


@given(formats)
def test_the_storage_type_holds_every_code(format):
    info = torch.iinfo(storage_dtype(format))
    assert info.min <= format.code_min
    assert format.code_max <= info.max
    assert storage_dtype(FLOAT32) == torch.float32


@laws
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=6), st.integers(2, 8))
def test_symmetric_scales_reach_their_limits(limits, width):
    format = Format("int", width)
    scales = symmetric_params(torch.tensor(limits), format)
    assert scales.dtype == torch.float32
    for scale, limit in zip(scales.tolist(), limits, strict=True):
        assert scale > 0
        if limit == 0:
            assert scale == 1.0
        elif scale != 1.0:
            assert scale * format.code_max == pytest.approx(limit, rel=1e-6)
