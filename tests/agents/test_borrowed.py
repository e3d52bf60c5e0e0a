"""Agents around Optuna's samplers: what is theirs is tested there; here, what reaches them."""

from __future__ import annotations

from itertools import pairwise
from math import exp

import pytest
from optuna.samplers import NSGAIISampler

from haqsearch.agents.gp import GP
from haqsearch.agents.nsga2 import NSGA2
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.spec import OBJECTIVES
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem(share=0.4)  # so tight that nearly every wish is cut


def searched(agent, evaluations):
    study = new_study()
    run_search(PROBLEM, agent, SerialPool(AdditiveLoss(PROBLEM.space.model)), study, evaluations)
    return study


class WithoutMutation(NSGA2):
    def _sampler(self, seed):
        return NSGAIISampler(population_size=self.population, swapping_prob=self.swap, seed=seed, mutation_prob=0.0)


@pytest.fixture(scope="module")
def generations():
    """Per generation its trials, and whom Optuna says they were bred from."""
    agent = WithoutMutation(PROBLEM, seed=2, population=8)
    study = searched(agent, 32)
    key = NSGAIISampler._get_parent_cache_key_prefix()
    trials = study.get_trials()
    found = []
    for generation in range(4):
        members = [t for t in trials if t.system_attrs.get(NSGAIISampler._get_generation_key()) == generation]
        parents = study._storage.get_study_system_attrs(study._study_id).get(f"{key}{generation}", [])
        found.append((members, [t for t in trials if t._trial_id in parents]))
    return found


def test_a_generation_is_as_large_as_was_asked_and_holds_the_uniform_baselines(generations):
    assert [len(members) for members, _ in generations] == [8, 8, 8, 8]
    first = {trial.user_attrs["source"] for trial in generations[0][0]}
    assert first == {"uniform", "withoutmutation"}


def test_the_best_survive(generations):
    survivors: list = []
    for (members, _), (_, parents) in pairwise(generations):
        best = sorted([*members, *survivors], key=lambda trial: -trial.value)[:8]
        assert {trial.number for trial in parents} == {trial.number for trial in best}
        survivors = best


def test_children_are_bred_from_what_was_evaluated_not_from_what_was_wished_for(generations):
    cut = 0
    for members, parents in generations[1:]:
        for child in members:
            wish = agent_params(child.user_attrs["proposal"])
            for name, value in wish.items():
                assert value in {parent.params[name] for parent in parents}
        cut += sum(parent.user_attrs["proposal"] != parent.user_attrs["policy"] for parent in parents)
    assert cut > 0, "no parent was cut, so the test shows nothing"


def agent_params(proposal):
    from haqsearch.search.records import read_policy

    return PROBLEM.params_of(read_policy(proposal))


def test_gp_remembers_the_best_and_the_newest():
    agent = GP(PROBLEM, seed=1, memory=10)
    trials = searched(GP(PROBLEM, seed=1, startup=100), 30).get_trials()
    kept = agent._remembered(trials)
    assert len(kept) == 10
    assert [trial.number for trial in kept] == sorted({trial.number for trial in kept})
    best = sorted(trials, key=lambda trial: -trial.value)[:5]
    assert {trial.number for trial in best} <= {trial.number for trial in kept}
    others = [trial.number for trial in trials if trial not in best]
    assert {trial.number for trial in kept} - {trial.number for trial in best} == set(others[-5:])
    assert agent._remembered(trials[:10]) == trials[:10]


def test_gp_is_fitted_to_what_was_evaluated_on_an_even_scale():
    agent = GP(PROBLEM, seed=1, startup=100)
    trials = searched(agent, 12).get_trials()
    seen = agent._as_study(trials, []).get_trials()
    assert [trial.params for trial in seen] == [trial.params for trial in trials]
    assert [-exp(-trial.value) for trial in seen] == pytest.approx([trial.value for trial in trials])


def test_gp_counts_what_is_running():
    agent = GP(PROBLEM, seed=1, startup=5)
    study = searched(agent, 12)
    asked = [study.ask(PROBLEM.distributions) for _ in range(2)]
    assert asked[0].params != asked[1].params
    running = agent._as_study([], study.get_trials()[-2:]).get_trials()
    assert [trial.params for trial in running] == [trial.params for trial in asked]


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_an_even_scale_pays_the_same_for_every_halving(objective):
    even = OBJECTIVES[objective].even
    assert even(-0.2) - even(-0.4) == pytest.approx(even(-2.0) - even(-4.0))
    assert even(-0.1) > even(-0.2)
    assert even(-0.0) > even(-1e-3)
    assert [OBJECTIVES[objective].from_even(even(-x)) for x in (1e-5, 0.3, 40.0)] == pytest.approx([-1e-5, -0.3, -40.0])
    assert OBJECTIVES["accuracy"].even(0.9) == OBJECTIVES["accuracy"].from_even(0.9) == 0.9
