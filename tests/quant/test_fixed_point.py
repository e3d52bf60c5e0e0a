from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from haqsearch.errors import ModelError
from haqsearch.quant import decompose, requantize

from .laws import laws

INT32 = 2**31 - 1
multipliers = st.floats(2.0**-70, 2.0**29) | st.floats(1e-6, 1.0)
accumulators = st.integers(-INT32, INT32) | st.sampled_from([INT32, -INT32, 0, 1, -1])


def _decompose(m: float) -> tuple[int, int]:
    m0, shift = decompose(torch.tensor([m], dtype=torch.float64))
    return int(m0), int(shift)


def _half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


@laws
@given(multipliers)
@example(1.0)
@example(2.0**-32)
@example(math.nextafter(2.0**-32, 0))
@example(math.nextafter(1.0, 0))
@example(math.nextafter(2.0**30 - 0.25, 0))
@example(5e-324)
def test_the_fixed_point_form_is_within_its_stated_error(m):
    m0, shift = _decompose(m)
    error = abs(Fraction(m0, 2**shift) - Fraction(m))
    assert 1 <= shift <= 62
    if m >= 2.0**-32:
        assert 2**30 <= m0 < 2**31
        assert error <= Fraction(m) / 2**31
    else:
        assert 0 <= m0 <= 2**30
        assert error <= Fraction(1, 2**63)


@laws
@given(st.integers(2**30, 2**31 - 1), st.integers(2, 62))
def test_a_multiplier_that_has_a_fixed_point_form_gets_it(m0, shift):
    assert _decompose(m0 / 2**shift) == (m0, shift)


@laws
@given(st.lists(st.tuples(accumulators, multipliers), min_size=1, max_size=20))
def test_requantize_is_exact_arithmetic_rounded_once_half_up(pairs):
    acc = torch.tensor([a for a, _ in pairs])
    m0, shift = decompose(torch.tensor([m for _, m in pairs], dtype=torch.float64))
    exact = [_half_up(Fraction(a * m, 2**s)) for a, m, s in zip(acc.tolist(), m0.tolist(), shift.tolist(), strict=True)]
    assert requantize(acc, m0, shift).tolist() == exact


@pytest.mark.parametrize("acc", [INT32, -INT32, INT32 - 1, -(2**31)])
@pytest.mark.parametrize("m0", [2**30, 2**31 - 1, 1])
@pytest.mark.parametrize("shift", [1, 2, 31, 61, 62])
def test_requantize_does_not_overflow_at_the_extremes(acc, m0, shift):
    got = requantize(torch.tensor(acc), torch.tensor(m0), torch.tensor(shift))
    assert int(got) == _half_up(Fraction(acc * m0, 2**shift))


@laws
@given(st.integers(-(10**6), 10**6), st.integers(1, 20))
def test_ties_go_up(k, shift):
    """acc / 2**shift is exactly k + 1/2: half up gives k + 1, whatever the sign."""
    acc = (2 * k + 1) << (shift - 1)
    assume(abs(acc) <= INT32)
    assert int(requantize(torch.tensor(acc), torch.tensor(1), torch.tensor(shift))) == k + 1


@laws
@given(accumulators, accumulators, multipliers)
def test_requantize_keeps_the_order(a, b, m):
    m0, shift = decompose(torch.tensor([m], dtype=torch.float64))
    low, high = requantize(torch.tensor(sorted([a, b])), m0, shift).tolist()
    assert low <= high


def test_multipliers_broadcast_and_the_accumulator_is_left_alone():
    acc = torch.tensor([[100, -100], [7, 8]], dtype=torch.int32)
    before = acc.clone()
    m0, shift = decompose(torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert requantize(acc, m0, shift).tolist() == [[50, -25], [4, 2]]
    assert torch.equal(acc, before)


@pytest.mark.parametrize("m", [0.0, -1.0, math.nan, math.inf, -math.inf, 2.0**30, 2.0**30 - 0.25])
def test_a_multiplier_out_of_range_is_refused(m):
    with pytest.raises(ModelError, match="multiplier out of range"):
        _decompose(m)
