"""The baseline: the same widths on all layers, as wide as the budget allows."""

from __future__ import annotations

from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent, SpaceExhausted
from haqsearch.spec import Policy


class Uniform(Agent):
    """Only what the base class gives every agent first: the uniform policies worth trying. Then it is done."""

    several_objectives = True

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        count = len(self.problem.uniform_fits)
        raise SpaceExhausted(
            f"all {count} uniform policies worth trying have been evaluated"
            if count
            else "no single pair of widths fits the budget on all layers; another agent can mix them"
        )
