"""Evolution keeps to the budget's edge, and breeds from the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.agents import Problem
from haqsearch.agents.evolution import Evolution, to_the_edge
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.spec import Limit
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()
HIGHEST = [len(variable.candidates) - 1 for variable in PROBLEM.free]
wishes = st.tuples(*(st.integers(0, highest) for highest in HIGHEST)).map(np.array)
seeds = st.integers(0, 2**31)


def index_of(policy):
    return np.array(list(PROBLEM.params_of(policy).values()))


def neighbours_above(policy):
    """Every policy with one variable one step wider."""
    params = PROBLEM.params_of(policy)
    for variable, highest in zip(PROBLEM.free, HIGHEST, strict=True):
        if params[variable.name] < highest:
            yield PROBLEM.policy_of(params | {variable.name: params[variable.name] + 1})


@settings(max_examples=60)
@given(wishes, seeds)
def test_the_edge_is_inside_and_full(wish, seed):
    policy = to_the_edge(PROBLEM, wish, np.random.default_rng(seed))
    assert PROBLEM.feasible(policy)
    assert not any(PROBLEM.feasible(wider) for wider in neighbours_above(policy))


@settings(max_examples=20)
@given(wishes, seeds, seeds)
def test_what_is_on_the_edge_stays_there(wish, seed, other):
    policy = to_the_edge(PROBLEM, wish, np.random.default_rng(seed))
    assert to_the_edge(PROBLEM, index_of(policy), np.random.default_rng(other)) == policy


@settings(max_examples=20)
@given(wishes, seeds)
def test_a_wish_inside_loses_nothing(wish, seed):
    inside = index_of(to_the_edge(PROBLEM, wish, np.random.default_rng(0)))
    narrower = np.maximum(inside - 1, 0)
    filled = index_of(to_the_edge(PROBLEM, narrower, np.random.default_rng(seed)))
    assert (filled >= narrower).all()


@dataclass(frozen=True)
class Stuck:
    """Every step, up or down, costs more than any policy that a search begins with may cost."""

    metrics: tuple[str, ...] = ("latency_s",)
    additive: tuple[str, ...] = ()

    def costs(self, policy):
        index = index_of(policy)
        return {"latency_s": 1.0 if (index == 0).all() else 3.0 + 0.01 * float((HIGHEST - index).sum())}

    def layer_values(self, layer, choice):
        return {}


def test_where_no_step_helps_the_repair_does():
    problem = Problem(PROBLEM.space, Stuck(), (Limit("latency_s", 2.0, "latency_s <= 2"),), PROBLEM.objective)
    wish = np.array(HIGHEST)
    assert (index_of(to_the_edge(problem, wish, np.random.default_rng(0))) == wish).all()


@pytest.fixture(scope="module")
def completed():
    study = new_study()
    run_search(PROBLEM, Evolution(PROBLEM, seed=1), SerialPool(AdditiveLoss(PROBLEM.space.model)), study, 30)
    return study.get_trials()


def test_children_have_the_genes_of_the_best(completed):
    agent = Evolution(PROBLEM, population=4, crossover=1.0)
    best = sorted(completed, key=lambda trial: -trial.value)[:4]
    pool = np.array([[trial.params[variable.name] for variable in PROBLEM.free] for trial in best])
    children = [agent._bred(completed, np.random.default_rng(seed)) for seed in range(40)]
    assert all((child == pool).any(axis=0).all() for child in children)
    assert len({tuple(child) for child in children}) > 4, "nothing was crossed"


def test_a_larger_tournament_prefers_the_better(completed):
    def mean_rank(tournament: int) -> float:
        agent = Evolution(PROBLEM, population=10, tournament=tournament, crossover=0.0)
        ranked = sorted(completed, key=lambda trial: -trial.value)[:10]
        keys = [tuple(trial.params.values()) for trial in ranked]
        drawn = [tuple(agent._bred(completed, np.random.default_rng(seed)).tolist()) for seed in range(100)]
        return float(np.mean([keys.index(child) for child in drawn]))

    assert mean_rank(6) < mean_rank(2) < mean_rank(1)


@pytest.mark.parametrize("seed", range(5))
def test_a_mutant_differs_and_stays_in_the_space(completed, seed):
    agent = Evolution(PROBLEM, moves=3.0)
    rng = np.random.default_rng(seed)
    mutants = [agent._mutated(np.array(HIGHEST) // 2, rng) for _ in range(20)]
    assert all((mutant != np.array(HIGHEST) // 2).any() for mutant in mutants)
    assert all(((mutant >= 0) & (mutant <= HIGHEST)).all() for mutant in mutants)


@pytest.mark.parametrize("limits", [1, 2])
def test_proposals_need_no_repair_and_are_new(limits):
    """A parent's children are often known already, half of them under a size budget: then it has another."""
    problem = toy_problem(10, bits=(2, 3, 4, 5, 6, 7, 8))
    problem = Problem(problem.space, problem.costing, problem.limits[:limits], problem.objective)
    study = new_study()
    run_search(problem, Evolution(problem, seed=1), SerialPool(AdditiveLoss(problem.space.model)), study, 60)
    proposed = [trial for trial in study.get_trials() if trial.user_attrs["source"] == "evolution"]
    assert len(proposed) > 50
    assert all(trial.user_attrs["proposal"] == trial.user_attrs["policy"] for trial in proposed)
