"""Uniformly random policies: what every other agent has to beat."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent
from haqsearch.spec import Policy


class Random(Agent):
    """Every candidate of every variable with equal chance, then repaired into the budget."""

    several_objectives = True

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        return self.drawn(self.rng(trial))
