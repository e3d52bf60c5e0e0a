"""Agents that learn beat one that does not, on a sum of sensitivities, over several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from haqsearch.agents import build_agent
from haqsearch.agents.actor_critic import Learner
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem


def mean_log_loss(name: str, layers: int, evaluations: int, seeds: range) -> float:
    problem = toy_problem(layers, bits=(2, 3, 4, 5, 6, 7, 8))
    found = []
    for seed in seeds:
        agent = build_agent(name, problem, seed, max_evaluations=evaluations)
        pool = SerialPool(AdditiveLoss(problem.space.model, seed))
        summary = run_search(problem, agent, pool, new_study(), evaluations)
        assert summary.best is not None
        found.append(np.log(summary.best.evaluation.loss))
    return float(np.mean(found))


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_learning_beats_chance(name):
    """Measured over three pairs of seeds: tpe 0.46 to 0.61, evolution 0.74 to 0.87 nats below random; asked is 0.1."""
    learned, chance = (mean_log_loss(agent, 10, 60, range(2)) for agent in (name, "random"))
    assert learned < chance - 0.1


@pytest.mark.slow
def test_learning_beats_haqs_agent_without_its_updates(monkeypatch):
    """Chance is no yardstick for it: without any update it is 0.24 nats below random, with them 0.46. Asked is 0.1 between."""
    learned = mean_log_loss("ddpg", 10, 60, range(4))
    monkeypatch.setattr(Learner, "take", lambda *_: None)
    assert learned < mean_log_loss("ddpg", 10, 60, range(4)) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "ddpg", "td3", "evolution", "gp", "nsga2"])
def test_learning_beats_chance_on_twenty_layers(name):
    """A mean loss at least a third below that of random search, over four seeds of 150 evaluations."""
    learned, chance = (mean_log_loss(agent, 20, 150, range(4)) for agent in (name, "random"))
    assert learned < chance + np.log(2 / 3)
