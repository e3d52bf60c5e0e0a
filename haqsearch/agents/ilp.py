"""The exact agent: the best policy by the sensitivity table, proven; then the second best, the third, and so on.

Integer programming over additive sensitivities is HAWQ-V3's (Yao et al., ICML 2021) and MCT's way; here with every additive
budget at once, ties, and measured pairs (CLADO; Deng et al., 2023) as linearised products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.assignment import Assignment, Pairs
from haqsearch.agents.base import Agent, SpaceExhausted
from haqsearch.agents.problem import Problem
from haqsearch.errors import BudgetError
from haqsearch.spec import Policy


@dataclass(eq=False, repr=False)
class ILP(Agent):
    """Raises BudgetError where a limited metric is not a sum over the layers.

    gap   relative gap to the optimum at which the solver may stop; 0: proven optimal
    """

    needs_sensitivity = True

    gap: float = 0.0

    def __post_init__(self) -> None:
        self._assignment = Assignment(self.problem)

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        problem = self.problem
        single = [np.array(losses) for losses in problem.sensitivity.losses(problem.space)]
        # What is taken is whatever other trials hold: the same set again after a restart.
        taken = self._taken(study, trial)
        free = [len(variable.candidates) > 1 for variable in problem.space.variables]
        known = []
        for key in sorted(taken):
            left = iter(key)
            known.append(tuple(next(left) if is_free else 0 for is_free in free))
        try:
            return problem.space.policy(self._assignment.solve(single, pairs_of(problem), gap=self.gap, excluded=known))
        except BudgetError as error:
            raise SpaceExhausted(f"every policy inside the budget has been evaluated ({error})") from None


def pairs_of(problem: Problem) -> Pairs:
    """The measured pairs of the problem's sensitivity table, by positions in the space."""
    place = {variable.name: i for i, variable in enumerate(problem.space.variables)}
    return {(place[a], place[b]): np.array(table) for (a, b), table in problem.sensitivity.pairs.items()}
