"""Laws of the repair, on costs that add up, that do not, and that are not even monotone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.agents import Problem
from haqsearch.agents.repair import descend, repair, sweep, take_free_bits
from haqsearch.errors import BudgetError
from haqsearch.spec import OBJECTIVES, Limit, Policy, SearchSpace
from haqsearch.testing.toy import ShapeCosts, toy_model, toy_problem

SPACE = SearchSpace.build(toy_model(6), (2, 3, 4, 6, 8), (2, 3, 4, 6, 8))
SIZES = [len(variable.candidates) for variable in SPACE.variables]


@dataclass(frozen=True)
class Peak:
    """The largest input of any layer: no sum, and most steps buy nothing."""

    metrics: tuple[str, ...] = ("peak_activation_bytes",)

    def costs(self, policy: Policy) -> dict[str, float]:
        return {
            "peak_activation_bytes": max(
                layer.in_elements * policy[layer.name].activation.bits / 8 for layer in SPACE.model
            )
        }


@dataclass(frozen=True)
class Containers:
    """A processor without 3- and 6-bit instructions: those widths are unpacked, and cost more than the next one up."""

    metrics: tuple[str, ...] = ("latency_s",)

    def costs(self, policy: Policy) -> dict[str, float]:
        cycles = {2: 1.0, 3: 2.6, 4: 2.0, 6: 4.7, 8: 4.0}
        return {
            "latency_s": sum(
                layer.macs * (cycles[policy[layer.name].weight.width] + cycles[policy[layer.name].activation.width])
                for layer in SPACE.model
            )
        }


@dataclass(frozen=True)
class Table:
    """Arbitrary costs per variable and candidate, as a measured table might hold."""

    rows: tuple[tuple[int, ...], ...]
    metrics: tuple[str, ...] = ("latency_s",)

    def costs(self, policy: Policy) -> dict[str, float]:
        indices = SPACE.indices(policy)
        return {"latency_s": float(sum(row[i] for row, i in zip(self.rows, indices, strict=True)))}


@dataclass(frozen=True)
class Together:
    """Several costs at once."""

    parts: tuple
    metrics: tuple[str, ...] = ()

    def costs(self, policy: Policy) -> dict[str, float]:
        return {name: value for part in self.parts for name, value in part.costs(policy).items()}


tables = st.tuples(*(st.tuples(*[st.integers(1, 50)] * size) for size in SIZES)).map(Table)
costings = st.one_of(
    st.just(ShapeCosts(SPACE.model)),
    st.just(Peak()),
    st.just(Containers()),
    tables,
    st.tuples(st.just(ShapeCosts(SPACE.model)), tables).map(Together),
)
policies = st.tuples(*(st.integers(0, size - 1) for size in SIZES)).map(SPACE.policy)


@st.composite
def problems(draw, costings=costings):
    """A problem, and a policy inside its limits: they are set by that policy's own costs."""
    costing, fits = draw(costings), draw(policies)
    slack = draw(st.sampled_from([1.0, 1.1, 1.5]))
    limits = tuple(Limit(name, slack * cost, name) for name, cost in costing.costs(fits).items())
    return Problem(SPACE, costing, limits, OBJECTIVES["loss"]), fits


@given(problems(), policies)
def test_it_ends_inside_every_limit_and_stays_in_the_space(given_problem, policy):
    problem, fits = given_problem
    repaired = repair(problem, policy, fallback=fits)
    costs = problem.costing.costs(repaired)
    assert all(costs[limit.metric] <= limit.value for limit in problem.limits)
    assert SPACE.contains(repaired)
    repaired.check(SPACE.model)  # ties kept


@given(problems(), policies)
def test_it_leaves_alone_what_is_inside(given_problem, policy):
    problem, fits = given_problem
    assert repair(problem, fits) == fits
    once = repair(problem, policy, fallback=fits)
    assert repair(problem, once) == once


@given(problems(), policies)
def test_the_sweep_never_raises_the_violation_nor_the_bits(given_problem, policy):
    problem, _ = given_problem
    swept = sweep(problem, policy)
    assert problem.violation(swept) <= problem.violation(policy)
    assert all(after <= before for after, before in zip(SPACE.indices(swept), SPACE.indices(policy), strict=True))


@given(problems(costings=st.sampled_from([ShapeCosts(SPACE.model), Peak()])), policies)
def test_where_fewer_bits_never_cost_more_no_fallback_is_needed(given_problem, policy):
    problem, _ = given_problem
    assert problem.feasible(repair(problem, policy))


@st.composite
def increasing(draw):
    rows = tuple(
        tuple(int(total) for total in np.cumsum(draw(st.tuples(*[st.integers(1, 20)] * size)))) for size in SIZES
    )
    return Table(rows)


@settings(max_examples=50)
@given(problems(costings=increasing()), policies)
def test_on_a_strictly_increasing_table_it_is_haqs_sweep(given_problem, policy):
    """linear_quantize_env.py:173-193, transcribed; the table grows by at least 1 with every step, as HAQ's does."""
    problem, fits = given_problem
    indices, limit = list(SPACE.indices(policy)), problem.limits[0].value

    def cost() -> float:
        return problem.costing.costs(SPACE.policy(indices))["latency_s"]

    while cost() > limit and any(indices):
        for layer in reversed(range(len(indices))):
            if indices[layer] > 0:
                indices[layer] -= 1
            if cost() <= limit:
                break
    assert repair(problem, policy, fallback=fits) == SPACE.policy(indices)


def test_a_size_budget_takes_no_activation_bits():
    """HAQ's blind sweep takes them first, though they are no part of a model's size."""
    problem = toy_problem()
    problem = Problem(problem.space, problem.costing, problem.limits[:1], problem.objective)
    assert problem.limits[0].metric == "size_bytes"
    widest = problem.space.policy([len(v.candidates) - 1 for v in problem.space.variables])
    repaired = repair(problem, widest)
    assert not problem.feasible(widest)
    assert all(repaired[name].activation == widest[name].activation for name in repaired)


def test_it_is_stuck_loudly_without_a_fallback():
    rows = tuple(tuple([9] * (size - 1) + [5]) for size in SIZES)  # every step down costs more
    limit = Limit("latency_s", float(5 * len(SIZES) - 1), "latency_s <= 4")
    problem = Problem(SPACE, Table(rows), (limit,), OBJECTIVES["loss"])
    widest = SPACE.policy([size - 1 for size in SIZES])
    with pytest.raises(BudgetError, match="fallback"):
        repair(problem, widest)


def test_one_ulp_over_the_limit_is_over():
    """The ratio of such a cost to its limit can round to 1.0."""
    value = 1.9999999999999
    problem = toy_problem()
    cost = np.nextafter(value, 2.0)

    @dataclass(frozen=True)
    class Constant:
        metrics: tuple[str, ...] = ("bops",)

        def costs(self, policy):
            return {"bops": float(cost)}

    over = Problem(problem.space, Constant(), (Limit("bops", value, "bops"),), problem.objective)
    policy = problem.space.policy([0] * len(problem.space.variables))
    assert float(cost) > value
    assert not over.feasible(policy)


@given(problems(), policies)
def test_free_bits_cost_nothing_and_take_none_away(given_problem, policy):
    problem, _ = given_problem
    wider = take_free_bits(problem, policy)
    before, after = problem.costing.costs(policy), problem.costing.costs(wider)
    assert all(after[limit.metric] <= before[limit.metric] for limit in problem.limits)
    assert all(a >= b for a, b in zip(SPACE.indices(wider), SPACE.indices(policy), strict=True))
    assert SPACE.contains(wider)


def test_free_bits_are_taken_where_they_are_free():
    """A peak of activation buffers leaves every weight free, and every activation that is not at the peak."""
    costing = Peak()
    policy = SPACE.policy([0] * len(SIZES))
    problem = Problem(SPACE, costing, (Limit("peak_activation_bytes", 1e9, ""),), OBJECTIVES["loss"])
    wider = take_free_bits(problem, policy)
    assert all(wider[layer.name].weight.width == 8 for layer in SPACE.model)
    assert costing.costs(wider) == costing.costs(policy)
    assert take_free_bits(problem, wider) == wider


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_way_down_by_loss_keeps_the_laws_of_the_sweep(data):
    problem = toy_problem(layers=5, share=data.draw(st.floats(0.3, 1.0)))
    space = problem.space
    losses = problem.sensitivity.losses(space)
    start = space.policy([data.draw(st.integers(0, len(v.candidates) - 1)) for v in space.variables])
    end = descend(problem, start, losses)
    assert problem.violation(end) <= problem.violation(start)
    assert all(a <= b for a, b in zip(space.indices(end), space.indices(start), strict=True))
    assert descend(problem, end, losses) == end
    if problem.feasible(start):
        assert end == start
    if problem.feasible(sweep(problem, start)):
        assert problem.feasible(end)


def test_the_way_down_by_loss_ends_better_than_the_sweep_mostly():
    wins = 0
    for layers in range(5, 25):
        problem = toy_problem(layers=layers)
        widest = problem.space.policy([len(v.candidates) - 1 for v in problem.space.variables])
        losses = [
            problem.sensitivity.predict(problem.space, end)
            for end in (descend(problem, widest, problem.sensitivity.losses(problem.space)), sweep(problem, widest))
        ]
        wins += losses[0] < losses[1]
    assert wins >= 18
