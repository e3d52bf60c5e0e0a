"""An agent that learns proposes better policies late in a search than the same agent does whose networks stand still.

Chance is no measure for it: an untrained actor proposes middling bits, which beats chance, with less and less noise around
them, which looks like learning.
"""

from __future__ import annotations

from statistics import fmean

import pytest

from haqsearch.agents.ddpg import DDPG
from haqsearch.agents.td3 import TD3
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

WINDOW, EVALUATIONS = 15, 70


def last(kind: type[DDPG], seed: int) -> float:
    """Mean accuracy of the agent's last proposals."""
    problem, study = toy_problem(objective="accuracy"), new_study()
    agent = kind(problem, seed, EVALUATIONS)
    run_search(problem, agent, SerialPool(AdditiveLoss(problem.space.model, seed)), study, EVALUATIONS)
    return fmean(record.score for record in list(read_records(study))[-WINDOW:])


def without_updates(kind: type[DDPG]) -> type[DDPG]:
    class Still(kind.learner):
        def _update(self, *_: object) -> None: ...

    return type("Still", (kind,), {"learner": Still})


@pytest.mark.parametrize("kind", [DDPG, TD3])
def test_what_it_proposes_gets_better_by_learning(kind):
    for seed in (1, 2):
        learned, untaught = last(kind, seed), last(without_updates(kind), seed)
        print(f"{kind.__name__}, seed {seed}: {untaught:.4f} untaught, {learned:.4f} taught")
        assert learned > untaught
