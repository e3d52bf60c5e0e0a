"""The exact solver against every policy there is, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.agents import Problem
from haqsearch.agents.assignment import Assignment
from haqsearch.agents.repair import take_free_bits
from haqsearch.errors import BudgetError
from haqsearch.spec import OBJECTIVES, Choice, Limit, Policy, SearchSpace
from haqsearch.testing.toy import ShapeCosts, toy_model, toy_problem

MODEL = toy_model(4)  # blocks 1 and 2 share one activation
SPACE = SearchSpace.build(MODEL, (2, 4, 8), (2, 4, 8), {"head": Choice.parse("w8a8")})
KEYS = [tuple(map(int, key)) for key in np.ndindex(*(len(v.candidates) for v in SPACE.variables))]
COSTING = ShapeCosts(MODEL)
COSTS = {key: COSTING.costs(SPACE.policy(key)) for key in KEYS}
FULL = COSTING.costs(Policy.uniform(MODEL, Choice.parse("w8a8")))


def problem(size: float, bops: float) -> Problem:
    limits = (Limit("size_bytes", size * FULL["size_bytes"], "size"), Limit("bops", bops * FULL["bops"], "bops"))
    return Problem(SPACE, COSTING, limits, OBJECTIVES["loss"])


def brute(one: Problem, single, pairs=None) -> list[tuple[float, tuple[int, ...]]]:
    """Every policy inside the limits with its loss, best first."""
    found = []
    for key in KEYS:
        if all(limit.met(COSTS[key]) for limit in one.limits):
            loss = sum(float(single[v][c]) for v, c in enumerate(key))
            loss += sum(float(table[key[i], key[j]]) for (i, j), table in (pairs or {}).items())
            found.append((loss, key))
    return sorted(found)


shares = st.floats(0.3, 1.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), shares, shares)
def test_the_optimum_is_that_of_enumeration(seed, size, bops):
    one = problem(size, bops)
    rng = np.random.default_rng(seed)
    single = [rng.lognormal(0, 1, len(v.candidates)) for v in SPACE.variables]
    expected = brute(one, single)
    if not expected:
        with pytest.raises(BudgetError, match="no policy of the search space"):
            Assignment(one).solve(single)
        return
    found = Assignment(one).solve(single)
    assert sum(single[v][c] for v, c in enumerate(found)) == pytest.approx(expected[0][0], rel=1e-9)
    assert one.feasible(SPACE.policy(found))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), shares)
def test_products_of_decisions_in_different_layers_are_exact_too(seed, size):
    one = problem(size, 1.0)
    rng = np.random.default_rng(seed)
    sizes = [len(v.candidates) for v in SPACE.variables]
    single = [rng.lognormal(0, 1, n) for n in sizes]
    some = [(0, 2), (0, 1), (2, 3), (1, 4)]  # two in one layer, one with the shared activation
    pairs = {(i, j): rng.normal(0, 2, (sizes[i], sizes[j])) for i, j in some}
    expected = brute(one, single, pairs)
    if expected:
        found = Assignment(one).solve(single, pairs)
        loss = sum(single[v][c] for v, c in enumerate(found)) + sum(
            t[found[i], found[j]] for (i, j), t in pairs.items()
        )
        assert loss == pytest.approx(expected[0][0], rel=1e-9, abs=1e-9)


def test_solutions_excluded_one_by_one_come_in_order():
    one = problem(0.7, 0.7)
    single = [np.random.default_rng(3).lognormal(0, 1, len(v.candidates)) for v in SPACE.variables]
    expected = brute(one, single)[:12]
    found: list[tuple[int, ...]] = []
    for _ in expected:
        found.append(Assignment(one).solve(single, excluded=found))
    assert [sum(single[v][c] for v, c in enumerate(key)) for key in found] == pytest.approx(
        [loss for loss, _ in expected]
    )


def test_a_limit_met_to_the_last_byte_is_met_and_one_byte_less_is_not():
    single = [np.arange(len(v.candidates))[::-1].astype(float) for v in SPACE.variables]
    for key in KEYS[:: len(KEYS) // 7]:
        exact = COSTS[key]["size_bytes"]
        one = Problem(SPACE, COSTING, (Limit("size_bytes", exact, ""),), OBJECTIVES["loss"])
        assert COSTING.costs(SPACE.policy(Assignment(one).solve(single)))["size_bytes"] <= exact
    least = min(cost["size_bytes"] for cost in COSTS.values())
    tight = Problem(SPACE, COSTING, (Limit("size_bytes", least, ""),), OBJECTIVES["loss"])
    assert COSTING.costs(SPACE.policy(Assignment(tight).solve(single)))["size_bytes"] == least
    with pytest.raises(BudgetError):
        Assignment(Problem(SPACE, COSTING, (Limit("size_bytes", least - 1, ""),), OBJECTIVES["loss"])).solve(single)


def test_slack_leaves_a_share_of_every_limit_free():
    one = problem(0.8, 0.8)
    single = [np.array([4.0**-f.bits for f in v.candidates]) for v in SPACE.variables]
    costs = COSTING.costs(SPACE.policy(Assignment(one).solve(single, slack=0.1)))
    assert all(costs[limit.metric] <= 0.9 * limit.value * (1 + 1e-9) for limit in one.limits)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, len(KEYS) - 1), min_size=1, max_size=20))
def test_many_policies_are_priced_as_one_by_one(which):
    one = problem(0.5, 0.6)
    shares_of = Assignment(one).shares(np.array([KEYS[i] for i in which], dtype=np.intp))
    for column, i in enumerate(which):
        expected = [COSTS[KEYS[i]][limit.metric] / limit.value for limit in one.limits]
        assert shares_of[:, column] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("limits", [("size_bytes",), ("bops",), ("size_bytes", "bops"), ()])
def test_free_bits_of_many_policies_are_those_of_each(limits):
    one = replace(problem(0.5, 0.6), limits=tuple(x for x in problem(0.5, 0.6).limits if x.metric in limits))
    keys = np.array(KEYS[:: len(KEYS) // 40], dtype=np.intp)
    widened = Assignment(one).widened(keys)
    assert [tuple(key) for key in widened] == [SPACE.indices(take_free_bits(one, SPACE.policy(key))) for key in keys]
    assert bool((widened >= keys).all())
    if limits == ("size_bytes",):
        assert bool((widened != keys).any()), "activations cost no bytes"


def test_a_metric_that_is_no_sum_is_refused_with_the_agents_that_can():
    class Peaky(ShapeCosts):
        additive = ("bops",)

    one = Problem(SPACE, Peaky(MODEL), (Limit("size_bytes", 1e9, "size_bytes <= 1 GB"),), OBJECTIVES["loss"])
    with pytest.raises(BudgetError, match=r"size_bytes is not a sum over the layers.*funnel"):
        Assignment(one)


def test_the_ilp_agent_finds_the_optimum_first_and_the_second_next():
    from haqsearch.agents.ilp import ILP
    from haqsearch.search.loop import run_search
    from haqsearch.search.pool import SerialPool
    from haqsearch.search.records import read_records
    from haqsearch.testing.toy import AdditiveLoss, new_study

    toy = toy_problem(layers=5, bits=(2, 4, 8))
    evaluate, study = AdditiveLoss(toy.space.model), new_study(toy)
    count = len(toy.openings) + 5
    run_search(toy, ILP(toy), SerialPool(evaluate), study, count)
    keys = [tuple(map(int, key)) for key in np.ndindex(*(len(v.candidates) for v in toy.space.variables))]
    inside = sorted(evaluate(p).loss for key in keys if toy.feasible(p := toy.space.policy(key)))
    got = [r.evaluation.loss for r in read_records(study)][len(toy.openings) :]
    assert got[0] == pytest.approx(inside[0])
