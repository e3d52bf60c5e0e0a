"""Agents of several objectives pass the kit in trade-offs too, and the others say that they are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haqsearch.agents import AGENTS, build_agent
from haqsearch.errors import RecipeError
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.search.volume import FrontVolume
from haqsearch.spec import Choice, Policy, dominates
from haqsearch.testing.agent_cases import TradeoffCases
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem(tradeoff=("bops",))
GOOD = AdditiveLoss(PROBLEM.space.model)


class _Registered(TradeoffCases):
    name: str

    def build(self, problem, seed):
        return build_agent(self.name, problem, seed, max_evaluations=self.evaluations)


class TestRandom(_Registered):
    name = "random"


class TestUniform(_Registered):
    name = "uniform"


class TestTPE(_Registered):
    name = "tpe"


class TestNSGA2(_Registered):
    name = "nsga2"


class TestNSGA3(_Registered):
    name = "nsga3"


class TestFunnel(_Registered):
    name = "funnel"


def able() -> set[str]:
    found = set()
    for name in AGENTS:
        try:
            build_agent(name, PROBLEM, 0)
        except RecipeError:
            continue
        found.add(name)
    return found


def test_every_agent_that_says_it_can_is_put_to_the_proof_here():
    assert {case.name for case in _Registered.__subclasses__()} == able()


def test_an_agent_of_one_objective_says_which_ones_can():
    with pytest.raises(RecipeError, match=r"'ddpg' improves the objective alone.*bops; these can: .*nsga3") as refused:
        build_agent("ddpg", PROBLEM, 0)
    named = str(refused.value).rpartition("these can: ")[2].split(", ")
    assert set(named) == able()
    assert build_agent("ddpg", toy_problem(), 0)


def _uniform(w: int, a: int) -> Policy:
    eight = Choice.parse("w8a8")
    return Policy.uniform(PROBLEM.space.model, Choice.parse(f"w{w}a{a}"), {"block.0": eight, "head": eight})


@pytest.mark.parametrize("metric", ["bops", "size_bytes"])
def test_uniform_policies_are_worth_trying_if_none_is_as_cheap_and_as_wide(metric):
    problem = replace(PROBLEM, tradeoff=(metric,), limits=())

    def prospect(w: int, a: int) -> tuple[float, float]:
        noise = sum(4.0 ** -(w if v.role == "weight" else a) for v in problem.free)
        return noise, problem.costing.costs(_uniform(w, a))[metric]

    pairs = {(w, a): prospect(w, a) for w in (2, 3, 4, 6, 8) for a in (2, 3, 4, 6, 8)}
    worth = {pair for pair in pairs if not any(dominates(other, pairs[pair]) for other in pairs.values())}
    assert {(p["block.1"].weight.width, p["block.1"].activation.width) for p in problem.uniform_fits} == worth
    assert {(2, 2) if metric == "bops" else (2, 8), (8, 8)} <= worth
    if metric == "size_bytes":  # activations cost no weight memory: there is no reason to narrow them
        assert worth == {(w, 8) for w in (2, 3, 4, 6, 8)}


def _volume(agent: str, seed: int, evaluations: int) -> float:
    problem, study = replace(PROBLEM, limits=()), new_study(PROBLEM)
    run_search(problem, build_agent(agent, problem, seed, evaluations), SerialPool(GOOD), study, evaluations)
    records, full = read_records(study), problem.costing.costs(_uniform(8, 8))["bops"]
    volume = FrontVolume(problem.objective, {"bops": full})
    volume.add(records)
    return volume.share


def test_the_funnel_finds_more_with_a_third_of_the_evaluations():
    """Exact at every level of a sum of sensitivities, which it is here."""
    ours, others = (sorted(_volume(*search) for search in searches) for searches in (
        [("funnel", seed, 40) for seed in range(3)], [("nsga3", seed, 120) for seed in range(3)]))  # fmt: skip
    assert ours[0] > others[-1], (ours, others)


def test_nsga3_finds_more_than_chance_and_than_the_uniform_policies():
    ours, random = (sorted(_volume(agent, seed, 120) for seed in range(3)) for agent in ("nsga3", "random"))
    assert ours[0] > _volume("uniform", 0, 120)
    assert ours[1] > random[1]
