from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.agents import Problem
from haqsearch.errors import BudgetError, PolicyError
from haqsearch.spec import Choice, Limit, Policy, SearchSpace
from haqsearch.testing.toy import ShapeCosts, toy_model, toy_problem

PROBLEM = toy_problem()
params = st.fixed_dictionaries({v.name: st.integers(0, len(v.candidates) - 1) for v in PROBLEM.free})


@given(params)
def test_parameters_and_policies_are_the_same_thing(chosen):
    policy = PROBLEM.policy_of(chosen)
    assert PROBLEM.params_of(policy) == chosen
    assert PROBLEM.space.contains(policy)


def test_distributions_are_indices_of_the_free_variables_only():
    pinned = {"block.0.weight", "block.0.activation", "head.weight", "head.activation"}
    assert pinned.isdisjoint(PROBLEM.distributions)
    assert "block.2.activation" not in PROBLEM.distributions  # reads what block.1 reads
    for variable in PROBLEM.free:
        distribution = PROBLEM.distributions[variable.name]
        assert (distribution.low, distribution.high) == (0, len(variable.candidates) - 1)
        bits = [f.bits for f in variable.candidates]
        assert bits == sorted(bits)


def test_a_policy_of_other_formats_is_refused():
    with pytest.raises(PolicyError, match="not in the search space"):
        PROBLEM.params_of(Policy.uniform(PROBLEM.space.model, Choice.parse("w5a5")))


def test_uniform_fits_are_the_maximal_pairs_that_fit():
    fits = PROBLEM.uniform_fits
    pairs = [(p["block.1"].weight.width, p["block.1"].activation.width) for p in fits]
    everything = [(w, a) for w in (2, 3, 4, 6, 8) for a in (2, 3, 4, 6, 8)]

    def policy(w: int, a: int) -> Policy:
        eight = Choice.parse("w8a8")
        return Policy.uniform(PROBLEM.space.model, Choice.parse(f"w{w}a{a}"), {"block.0": eight, "head": eight})

    fitting = [pair for pair in everything if PROBLEM.feasible(policy(*pair))]
    assert 0 < len(fitting) < len(everything)
    best = [p for p in fitting if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in fitting)]
    assert sorted(pairs) == sorted(best)
    assert len(pairs) < len(fitting)


def test_an_impossible_budget_says_which_limit_and_what_was_reached():
    limit = Limit("size_bytes", 1.0, "size_bytes <= 1 B")
    problem = Problem(PROBLEM.space, PROBLEM.costing, (limit,), PROBLEM.objective)
    with pytest.raises(BudgetError, match=r"size_bytes <= 1 B \(limit 1, reached \d+"):
        _ = problem.known_feasible


def test_layer_features_are_haqs_eight():
    model = toy_model(6)
    space = SearchSpace.build(model, (2, 8), (2, 8))
    problem = Problem(space, ShapeCosts(model), (), PROBLEM.objective)
    features = problem.layer_features
    assert features.shape == (len(space.variables), 8)
    assert features.min() == 0.0
    assert features.max() == 1.0
    rows = {v.name: row for v, row in zip(problem.free, features, strict=True)}
    assert rows["block.2.weight"][0] == 1.0  # the depthwise one
    assert rows["block.1.weight"][0] == 0.0
    assert rows["head.weight"][6] == 0.0  # input pixels
    assert np.array_equal(rows["block.1.weight"], rows["block.1.activation"])
    assert [rows[f"block.{i}.weight"][7] for i in range(5)] == [0.0, 0.2, 0.4, pytest.approx(0.6), 0.8]
    assert (features[:, 3] == 0.0).all()  # every stride is 1: a constant column says nothing
