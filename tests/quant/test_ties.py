from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from haqsearch.quant.ties import odd_multiple, odd_ratio

from .laws import laws

ratios = st.floats(1e-5, 20.0)
tolerances = st.floats(2.0**-13, 2.0**-5)


def _ratio(x: float, tolerance: float) -> float:
    return float(odd_ratio(torch.tensor([x], dtype=torch.float64), torch.tensor([tolerance], dtype=torch.float64)))


def _fraction(ratio: float) -> Fraction:
    """The rational number a float64 was made of: the only one with so small a denominator that it is nearest to."""
    found = Fraction(ratio).limit_denominator(2**17)
    assert float(found) == ratio
    return found


@laws
@given(ratios, tolerances)
@example(1.0, 2.0**-13)
@example(0.5, 2.0**-13)
@example(0.25, 2.0**-5)
@example(127 / 128, 2.0**-13)
def test_the_ratio_is_close_and_its_denominator_odd(x, tolerance):
    ratio = _ratio(x, tolerance)
    assert 0 < ratio
    assert abs(ratio - x) <= tolerance * x
    assert _fraction(ratio).denominator % 2 == 1


@laws
@given(ratios, tolerances, st.integers(-(2**31) + 1, 2**31 - 1))
def test_no_product_with_an_integer_is_near_a_half(x, tolerance, acc):
    ratio = _fraction(_ratio(x, tolerance))
    product = acc * ratio
    from_half = abs((product - Fraction(1, 2)) % 1)
    assert min(from_half, 1 - from_half) >= Fraction(1, 2 * ratio.denominator)


@laws
@given(ratios, tolerances)
def test_no_smaller_odd_denominator_will_do(x, tolerance):
    found = _fraction(_ratio(x, tolerance)).denominator
    for q in range(1, min(found, 400), 2):
        nearest = round(x * q) / q
        assert nearest <= 0 or abs(nearest - x) > tolerance * x


@laws
@given(st.lists(st.tuples(ratios, tolerances), min_size=1, max_size=5))
def test_every_ratio_is_found_by_itself(pairs):
    x, tolerance = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    assert odd_ratio(x, tolerance).tolist() == [_ratio(*pair) for pair in pairs]


def test_a_half_is_moved_and_a_third_is_not():
    assert _ratio(1 / 3, 2.0**-13) == 1 / 3
    assert _ratio(0.5, 2.0**-5) != 0.5


def test_a_ratio_that_no_small_denominator_approaches_stays():
    assert _ratio(1e-9, 2.0**-13) == 1e-9


@laws
@given(st.floats(1e-6, 1e6), st.integers(1, 2000), st.floats(0, 1))
def test_an_odd_multiple_is_odd_and_the_nearest(unit, k, part):
    x = unit * (k + part)
    found = odd_multiple(x, unit)
    times = round(found / unit)
    assert found == unit * times
    assert times % 2 == 1
    assert times >= 1
    assert abs(found - x) <= unit * (1 + 1e-9)


@pytest.mark.parametrize("x", [0.0, 0.1, 0.9, 1.0, 1.9])
def test_an_odd_multiple_is_at_least_the_unit(x):
    assert odd_multiple(x, 1.0) == 1.0


@laws
@given(st.floats(0.01, 1e3), st.floats(0.01, 1e3), st.floats(1e-3, 1e-2))
def test_two_odd_multiples_have_an_odd_ratio(a, b, unit):
    numerator, denominator = (round(odd_multiple(x, unit) / unit) for x in (a, b))
    assert Fraction(numerator, denominator).denominator % 2 == 1
