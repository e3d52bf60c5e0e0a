"""The default agent: exact where the problem adds up, learned where it does not.

1. The sensitivity table is solved exactly under the budget, at several levels of slack: the first proposals.
2. A surrogate (``surrogate.py``) starts from the table and is corrected by every evaluation.
3. Of thousands of policies inside the budget - neighbours of the best ones found, and the exact optimum of the additive
   part of what has been learned - the one with the largest expected improvement is evaluated next. By turns the surrogate is
   the likeliest, and the least sure of those that explain what was seen about as well: the first alone, on ResNet-20, had its
   last idea after a quarter of the search.

A trade-off is a budget that moves: every proposal is the funnel's for a limit on each metric of the trade-off, and the limits go
through what is worth having evenly from one to the next (the epsilon constraints of Haimes et al., 1971). All of them learn
from the evaluations of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.assignment import Assignment
from haqsearch.agents.base import Agent
from haqsearch.agents.ilp import pairs_of
from haqsearch.agents.problem import Key, Problem
from haqsearch.agents.repair import repair
from haqsearch.agents.surrogate import Surrogate
from haqsearch.errors import BudgetError
from haqsearch.spec import Limit, Policy

Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.intp]

_GAP = 1e-3  # of the exact solver, on a table that is itself an estimate
_ROUNDS = 5  # of looking at neighbours per proposal
_POOL = 2000  # neighbours looked at in a round
_PARENTS = 8  # policies whose neighbours they are
# The region of trust, in multiples of the best policy's: of the table's prediction, beyond which a policy is neither looked at
# nor learned from (a wide prior on a huge rise would promise wonders there); and of the loss, beyond which worse is no worse.
_TRUST, _FAR = 2.0, 4.0
_DOUBT = 8.0  # nats, of every other proposal's surrogate
_ON_IT = 1e-12  # of a limit, by which a share may be off


@dataclass(eq=False, repr=False)
class Funnel(Agent):
    """Limits on metrics that are sums over the layers are kept by the exact solver; the others by repair.

    slack   shares of the budget left free by the first proposals, one each
    """

    several_objectives = True
    needs_sensitivity = True

    slack: tuple[float, ...] = (0.0, 0.02, 0.05)

    def __post_init__(self) -> None:
        additive = [limit for limit in self.problem.limits if limit.metric in self.problem.costing.additive]
        self._assignment = Assignment(self.problem, additive)

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        turn = trial.number - len(self.problem.openings)
        if not self.problem.tradeoff:
            return self._wish(study, trial, turn)
        level = self._level(turn)
        try:
            wish = replace(self, problem=level)._wish(study, trial, turn)
            return wish if level.feasible(wish) else repair(level, wish, level.known_feasible)
        except BudgetError:  # metrics at odds: nothing is inside all their limits
            return self.problem.known_feasible

    def _level(self, turn: int) -> Problem:
        """The problem under a limit on each metric of the trade-off, between its least and its reference.

        Quasi-random: the additive recurrence of Roberts (2018), whose points are spread evenly after every one.
        """
        problem = self.problem
        least = problem.costing.costs(problem.space.policy([0] * len(problem.space.variables)))
        step, limits = 2.0, []
        for _ in range(32):  # the root of step ** (d + 1) = step + 1
            step = (1 + step) ** (1 / (len(problem.tradeoff) + 1))
        for k, (metric, most) in enumerate(problem.reference.items(), 1):
            value = least[metric] + max(most - least[metric], 0.0) * ((0.5 + (turn + 1) / step**k) % 1)
            limits.append(Limit(metric, value, f"{metric} <= {value:.6g}"))
        return replace(
            problem, limits=(*problem.limits, *limits), tradeoff=(), warm_starts=(), measure=lambda: problem.sensitivity
        )

    def _wish(self, study: Study, trial: FrozenTrial, turn: int) -> Policy:
        problem = self.problem
        rises = [np.array(losses) for losses in problem.sensitivity.losses(problem.space)]
        if turn < len(self.slack):
            return problem.space.policy(self._exact(rises, self.slack[turn], pairs=True))
        keys, losses = self._seen(study)
        inside = (self._assignment.shares(keys) <= 1 + _ON_IT).all(axis=0)  # without a trade-off all are
        if not inside.any():  # nothing could be evaluated so far, or nothing as cheap as this level asks
            return problem.space.policy(self._exact([r * f for r, f in zip(rises, self._shaken(trial), strict=True)]))
        least = float(losses[inside].min())
        within = self._trusted(rises, keys[inside][int(np.argmin(losses[inside]))])
        near = within(keys)
        doubt = _DOUBT if turn % 2 else 0.0
        surrogate = Surrogate(rises, keys[near], np.minimum(losses[near], _FAR * least), doubt)
        exact = self._assignment.widened(np.array([self._exact(surrogate.additive())], dtype=np.intp))
        parents = near & inside
        best = keys[parents][np.argsort(losses[parents], kind="stable")[:_PARENTS]]
        new = self._filter(study, trial, within)
        chosen = self._climb(surrogate, np.concatenate([best, exact]), least, new, self.rng(trial))
        return problem.space.policy([int(c) for c in (exact[0] if chosen is None else chosen)])

    def _climb(
        self, surrogate: Surrogate, parents: Keys, best: float, new: Callable[[Keys], Keys], rng: np.random.Generator
    ) -> npt.NDArray[np.intp] | None:
        """The policy of largest expected improvement that a few rounds of neighbours lead to; None if none is new."""
        found = new(parents)
        for _ in range(_ROUNDS):
            found = _distinct(np.concatenate([found, new(self._neighbours(parents, rng))]))
            if not len(found):
                return None
            order = np.argsort(-surrogate.improvement(found, best), kind="stable")
            found = parents = found[order[:_PARENTS]]
        return found[0]

    def _shaken(self, trial: FrozenTrial) -> Floats:
        return self.rng(trial).lognormal(0.0, 0.3, size=len(self.problem.space.variables))

    def _exact(self, rises: list[Floats], slack: float = 0.0, pairs: bool = False) -> Key:
        within = pairs_of(self.problem) if pairs else {}
        try:
            return self._assignment.solve(rises, within, slack, _GAP)
        except BudgetError:
            if not slack:
                raise
            return self._assignment.solve(rises, within, 0.0, _GAP)  # a budget too tight to leave anything free

    def _seen(self, study: Study) -> tuple[Keys, Floats]:
        """Policies with a score, [policies, variables], and their losses: how far each is from a perfect score."""
        problem = self.problem
        trials = self.completed(study)
        keys = [problem.space.indices(problem.policy_of(trial.params)) for trial in trials]
        scores = [problem.objective.from_even(t.values[0]) if len(t.values) > 1 else t.values[0] for t in trials]
        losses = problem.objective.ideal - np.array(scores)
        return np.array(keys, dtype=np.intp).reshape(len(keys), len(problem.space.variables)), losses

    @staticmethod
    def _trusted(rises: Sequence[Floats], best: npt.NDArray[np.intp]) -> Callable[[Keys], npt.NDArray[np.bool_]]:
        """Tells which policies the table predicts to be within the region of trust around ``best``."""

        def predicted(keys: Keys) -> Floats:
            columns = [np.asarray(rise)[keys[:, v]] for v, rise in enumerate(rises)]
            return np.sum(columns, axis=0) if columns else np.zeros(len(keys))

        limit = _TRUST * float(predicted(best[None])[0])
        return lambda keys: predicted(keys) <= limit

    def _neighbours(self, parents: Keys, rng: np.random.Generator) -> Keys:
        """Policies one to six steps away from one of ``parents``."""
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
        # Free bits are taken before it is asked whether a policy is new: two that differ in these alone are one.
        return _distinct(self._assignment.widened(children))

    def _filter(
        self, study: Study, trial: FrozenTrial, trusted: Callable[[Keys], npt.NDArray[np.bool_]]
    ) -> Callable[[Keys], Keys]:
        """What keeps of many policies those inside the additive limits and the region of trust that no other trial has."""
        free = [i for i, size in enumerate(self._assignment.sizes) if size > 1]
        taken = _rows(np.array(sorted(self._taken(study, trial)), dtype=np.intp).reshape(-1, len(free)))

        def new(keys: Keys) -> Keys:
            keys = keys[trusted(keys) & (self._assignment.shares(keys) <= 1.0).all(axis=0)]
            return keys[~np.isin(_rows(keys[:, free]), taken)]

        return new


def _rows(keys: Keys) -> npt.NDArray[np.void]:
    """Each of ``keys`` as one value that sorts as the key does: two bytes an index, the higher one first."""
    return np.ascontiguousarray(keys, dtype=">u2").view(f"V{2 * keys.shape[1]}")[:, 0]


def _distinct(keys: Keys) -> Keys:
    """``np.unique`` by rows, in a tenth of its time."""
    return keys[np.unique(_rows(keys), return_index=True)[1]]
