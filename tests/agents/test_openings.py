"""What every search begins with: the uniform baselines, then policies from elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.agents import build_agent
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.spec import Choice, Policy
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()
MODEL = PROBLEM.space.model
TOO_WIDE = Policy.uniform(MODEL, Choice.parse("w8a8"))
MIXED = PROBLEM.policy_of({v.name: i % 2 for i, v in enumerate(PROBLEM.free)})
widths = st.tuples(st.integers(2, 8), st.integers(2, 8))


@pytest.mark.parametrize("agent", ["random", "tpe", "ddpg"])
def test_warm_starts_follow_the_uniform_policies(agent):
    problem = replace(PROBLEM, warm_starts=(MIXED, TOO_WIDE))
    study = new_study()
    run_search(problem, build_agent(agent, problem, 1), SerialPool(AdditiveLoss(MODEL)), study, 12)
    records = read_records(study)
    uniform = len(problem.uniform_fits)
    assert [r.source for r in records[: uniform + 2]] == ["uniform"] * uniform + ["warm_start"] * 2
    assert records[uniform].policy == records[uniform].proposal == MIXED
    assert records[uniform + 1].proposal == TOO_WIDE
    assert {r.source for r in records[uniform + 2 :]} == {agent}
    assert all(r.feasible for r in records)


def test_without_warm_starts_a_search_is_what_it_was():
    assert [opening.policy for opening in PROBLEM.openings] == list(PROBLEM.uniform_fits)


@settings(max_examples=20)
@given(st.lists(widths, min_size=6, max_size=6))
def test_a_warm_start_is_brought_into_the_space_and_the_budget(bits):
    """block.2 reads what block.1 reads: what is given keeps the tie, as a policy of this network does."""
    names = [layer.name for layer in MODEL]
    given_ = {name: Choice.parse(f"w{w}a{a}") for name, (w, a) in zip(names, bits, strict=True)}
    given_["block.2"] = replace(given_["block.2"], activation=given_["block.1"].activation)
    problem = replace(PROBLEM, warm_starts=(Policy(given_),))
    opening = problem.openings[-1]
    assert problem.space.contains(opening.wish)
    assert problem.feasible(opening.policy)
    if opening.source == "warm_start" and problem.feasible(opening.wish):
        assert opening.policy == opening.wish
    for variable in problem.free:
        layer, role = variable.layers[0], variable.role
        wish, got = getattr(given_[layer], role).bits, getattr(opening.wish[layer], role).bits
        if opening.source == "warm_start":
            assert abs(got - wish) == min(abs(f.bits - wish) for f in variable.candidates)


def test_a_policy_is_opened_with_once():
    problem = replace(PROBLEM, warm_starts=(MIXED, MIXED, PROBLEM.uniform_fits[0]))
    assert [o.policy for o in problem.openings] == [*PROBLEM.uniform_fits, MIXED]
