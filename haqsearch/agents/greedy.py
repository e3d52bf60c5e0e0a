"""The hand-made rule: from the widest policy down, always the bits that cost least for what they save."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent
from haqsearch.agents.repair import descend
from haqsearch.spec import Policy


@dataclass(eq=False, repr=False)
class Greedy(Agent):
    """Greedy descent on the sensitivity table (as AIMET's automatic mixed precision), once as it is, then with the table shaken.

    spread  > 0, sigma of the log-normal factors, one per variable, that later proposals multiply the table with
    """

    needs_sensitivity = True

    spread: float = 0.3

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        problem = self.problem
        losses = problem.sensitivity.losses(problem.space)
        if trial.number > len(problem.openings):
            factors = self.rng(trial).lognormal(0.0, self.spread, size=len(losses))
            losses = [tuple(factor * np.array(row)) for factor, row in zip(factors, losses, strict=True)]
        widest = problem.space.policy([len(variable.candidates) - 1 for variable in problem.space.variables])
        return descend(problem, widest, losses)
