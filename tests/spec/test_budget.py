from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import BudgetError
from haqsearch.spec import METRICS, Budget, Limit, violation

units = st.sampled_from([(metric.name, unit) for metric in METRICS.values() for unit in metric.units])
numbers = st.floats(1e-6, 1e9)
costs = st.floats(1e-12, 1e15)


@given(units, numbers, st.sampled_from(["", " ", "  "]))
def test_a_limit_is_its_number_times_its_unit(unit, number, space):
    metric, name = unit
    budget = Budget.parse(f"{space}{metric}{space}<={space}{number!r}{space}{name}{space}")
    assert (budget.metric, budget.relative_to) == (metric, "")
    assert budget.limit == number * METRICS[metric].units[name]
    limit = budget.resolve({metric: 123.0})
    assert (limit.metric, limit.value) == (metric, budget.limit)


@given(st.sampled_from(list(METRICS)), numbers, costs)
def test_a_relative_limit_is_a_share_of_int8(metric, share, int8):
    budget = Budget.parse(f"{metric} <= {share!r} * int8")
    assert (budget.limit, budget.relative_to) == (share, "int8")
    assert budget.resolve({metric: int8}).value == share * int8
    assert Budget.parse(f"{metric}<={share!r}*int8").limit == share


@given(units, numbers)
def test_the_text_of_a_budget_is_the_budget(unit, number):
    budget = Budget.parse(f" {unit[0]} <= {number!r} {unit[1]} ")
    assert Budget.parse(budget.text) == budget


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("latency_s <= 12 ms", 0.012),
        ("energy_j<=3uJ", 3e-6),
        ("size_bytes <= 120 kB", 120e3),
        ("size_bytes <= 1.5 MiB", 1.5 * 2**20),
        ("peak_activation_bytes <= 64 KiB", 65536.0),
        ("bops <= 2.5 G", 2.5e9),
        ("bops <= 7", 7.0),
        ("bops <= 1e3 k", 1e6),
    ],
)
def test_units(text, value):
    assert Budget.parse(text).limit == value


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("", "write METRIC <= NUMBER UNIT"),
        ("latency_s", "write METRIC <= NUMBER UNIT"),
        ("latency_s < 3 s", "write METRIC <= NUMBER UNIT"),
        ("latency_s >= 3 s", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= s", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= nan s", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= inf s", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= 3 s please", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= 3 * int8 * 2", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= 3 s * int8", "write METRIC <= NUMBER UNIT"),
        ("latency_s <= int8 * 3", "write METRIC <= NUMBER UNIT"),
        ("latencys <= 3 s", "did you mean 'latency_s'?"),
        ("size <= 3 kB", "did you mean 'size_bytes'?"),
        ("zzz <= 3 s", "did you mean"),
        ("latency_s <= 3..0 s", "'3..0' is not a number"),
        ("latency_s <= 1-2 s", "'1-2' is not a number"),
        ("latency_s <= 3e s", "'3e' is not a number"),
        ("latency_s <= 0 s", "must be a positive number"),
        ("latency_s <= -3 s", "must be a positive number"),
        ("latency_s <= -0.6 * int8", "must be a positive number"),
        ("latency_s <= 1e999 s", "must be a positive number"),
        ("bops <= 1e300 T", "must be a positive number"),
        ("latency_s <= 5e-324 ns", "must be a positive number"),
        ("latency_s <= 3", "unit '' does not fit latency_s; use one of 's', 'ms', 'us', 'ns', or '* int8'"),
        ("latency_s <= 3 kB", "use one of 's', 'ms'"),
        ("size_bytes <= 3 kb", "use one of 'B', 'kB'"),
        ("bops <= 3 ms", "use one of no unit, 'k', 'M', 'G', 'T'"),
        ("latency_s <= 0.6 * fp32", "relative to int8 (all layers at 8/8), not to 'fp32'"),
    ],
)
def test_a_bad_budget_is_refused_with_the_mend(text, mend):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value)
    assert mend in str(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"\w+ ?<= ?[0-9.eE+-]+ ?(\* ?)?\w*", fullmatch=True))
def test_any_text_is_a_budget_or_a_budget_error(text):
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert budget.metric in METRICS
    assert 0 < budget.limit < math.inf


def test_a_metric_the_device_lacks_is_refused_with_those_it_has():
    with pytest.raises(BudgetError, match="this device has no energy_j; it knows latency_s, bops"):
        Budget.parse("energy_j <= 3 mJ").resolve({"latency_s": 1.0, "bops": 2.0})


limited = st.dictionaries(st.sampled_from(list(METRICS)), st.tuples(costs, costs), min_size=1)


def _limits(table):
    return {m: c for m, (c, _) in table.items()}, tuple(Limit(m, v, "") for m, (_, v) in table.items())


@given(limited)
def test_violation_is_zero_exactly_when_every_limit_is_met(table):
    spent, limits = _limits(table)
    assert (violation(spent, limits) == 0) == all(spent[m] <= value for m, (_, value) in table.items())
    assert violation(spent, limits) >= 0


@given(st.sampled_from(list(METRICS)), costs)
def test_the_limit_itself_is_met_and_one_ulp_more_is_not(metric, value):
    limits = (Limit(metric, value, ""),)
    assert violation({metric: value}, limits) == 0
    assert violation({metric: math.nextafter(value, math.inf)}, limits) > 0
    assert violation({metric: math.nextafter(value, 0)}, limits) == 0


@given(limited, st.data())
def test_violation_never_falls_when_a_cost_rises(table, data):
    spent, limits = _limits(table)
    metric = data.draw(st.sampled_from(list(spent)))
    more = {**spent, metric: spent[metric] * data.draw(st.floats(1.0, 1e3))}
    assert violation(more, limits) >= violation(spent, limits)


@given(limited)
def test_violation_is_the_sum_over_the_limits(table):
    spent, limits = _limits(table)
    assert violation(spent, limits) == pytest.approx(sum(violation(spent, (limit,)) for limit in limits))


def test_violation_is_the_fraction_in_excess():
    limits = (Limit("latency_s", 2.0, ""), Limit("bops", 10.0, ""))
    assert violation({"latency_s": 3.0, "bops": 9.0}, limits) == 0.5
    assert violation({"latency_s": 3.0, "bops": 20.0}, limits) == 1.5
    assert violation({"latency_s": 3.0, "bops": 20.0}, ()) == 0


@pytest.mark.parametrize("cost", [math.nan, math.inf])
def test_a_cost_that_is_no_number_never_meets_a_limit(cost):
    assert violation({"latency_s": cost}, (Limit("latency_s", 2.0, ""),)) > 0
