"""The default agent: exact where the problem adds up, learned where it does not.

1. The sensitivity table is solved exactly under the budget, at several levels of slack: the first proposals.
2. A surrogate (``surrogate.py``) starts from the table and is corrected by every evaluation.
3. Of thousands of policies inside the budget - neighbours of the best ones found, and the exact optimum of the additive
   part of what has been learned - the one with the largest expected improvement is evaluated next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.assignment import Assignment
from haqsearch.agents.base import Agent
from haqsearch.agents.ilp import pairs_of
from haqsearch.agents.problem import Key, Problem
from haqsearch.agents.surrogate import Surrogate
from haqsearch.errors import BudgetError
from haqsearch.spec import Policy

Keys = npt.NDArray[np.intp]

_GAP = 1e-3  # of the exact solver, on a table that is itself an estimate
_POOL = 4000  # neighbours looked at per proposal
_PARENTS = 8  # best policies whose neighbours they are
_FAR = 4.0  # policies worse than this many times the best teach nothing about where to look


class Funnel(Agent):
    """Limits on metrics that are sums over the layers are kept by the exact solver; the others by repair.

    slack   shares of the budget left free by the first proposals, one each
    """

    def __init__(
        self,
        problem: Problem,
        seed: int = 0,
        max_evaluations: int | None = None,
        slack: tuple[float, ...] = (0.0, 0.02, 0.05),
    ) -> None:
        super().__init__(problem, seed, max_evaluations)
        self.slack = slack
        additive = [limit for limit in problem.limits if limit.metric in problem.costing.additive]
        self._assignment = Assignment(problem, additive)

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        problem = self.problem
        rises = [np.array(losses) for losses in problem.sensitivity.losses(problem.space)]
        turn = trial.number - len(problem.openings)
        if turn < len(self.slack):
            return problem.space.policy(self._exact(rises, self.slack[turn], pairs=True))
        keys, losses = self._seen(study)
        if not len(keys):  # nothing could be evaluated so far
            return problem.space.policy(self._exact([r * f for r, f in zip(rises, self._shaken(trial), strict=True)]))
        surrogate = Surrogate(rises, keys, losses)
        best = keys[np.argsort(losses, kind="stable")[:_PARENTS]]
        pool = list(self._neighbours(best, self.rng(trial)))
        pool.append(np.array([self._exact(surrogate.additive())]))
        new = self._new_ones(np.concatenate(pool), study, trial)
        if not len(new):
            return problem.space.policy([int(c) for c in pool[-1][0]])
        chosen = new[int(np.argmax(surrogate.improvement(new, float(losses.min()))))]
        return problem.space.policy([int(c) for c in chosen])

    def _shaken(self, trial: FrozenTrial) -> npt.NDArray[np.float64]:
        return self.rng(trial).lognormal(0.0, 0.3, size=len(self.problem.space.variables))

    def _exact(self, rises: list[npt.NDArray[np.float64]], slack: float = 0.0, pairs: bool = False) -> Key:
        within = pairs_of(self.problem) if pairs else {}
        try:
            return self._assignment.solve(rises, within, slack, _GAP)
        except BudgetError:
            if not slack:
                raise
            return self._assignment.solve(rises, within, 0.0, _GAP)  # a budget too tight to leave anything free

    def _seen(self, study: Study) -> tuple[Keys, npt.NDArray[np.float64]]:
        """Policies with a score, [policies, variables], and their losses: how far each is from a perfect score."""
        problem = self.problem
        trials = self.completed(study)
        ideal = problem.objective.ideal
        keys = [problem.space.indices(problem.policy_of(trial.params)) for trial in trials]
        losses = np.array([ideal - trial.values[0] for trial in trials])
        near = losses <= _FAR * losses.min() if len(losses) else np.zeros(0, dtype=bool)
        return np.array(keys, dtype=np.intp).reshape(len(keys), -1)[near], losses[near]

    def _neighbours(self, parents: Keys, rng: np.random.Generator) -> Iterator[Keys]:
        """Policies inside the additive limits, one to six steps away from one of ``parents``."""
        sizes = np.array(self._assignment.sizes)
        free = np.flatnonzero(sizes > 1)
        children = parents[rng.integers(len(parents), size=_POOL)].copy()
        steps = rng.integers(1, 7, size=_POOL)
        rows = np.arange(_POOL)
        for step in range(int(steps.max())):
            moving = rows[steps > step]
            position = free[rng.integers(len(free), size=len(moving))]
            moved = children[moving, position] + rng.choice([-2, -1, 1, 2], size=len(moving), p=[0.1, 0.4, 0.4, 0.1])
            children[moving, position] = np.clip(moved, 0, sizes[position] - 1)
        inside = (self._assignment.shares(children) <= 1.0).all(axis=0)
        yield np.unique(children[inside], axis=0)

    def _new_ones(self, keys: Keys, study: Study, trial: FrozenTrial) -> Keys:
        taken = self._taken(study, trial)
        free = [i for i, size in enumerate(self._assignment.sizes) if size > 1]
        return keys[[tuple(int(c) for c in key[free]) not in taken for key in keys]]
