"""The exact solver: of all policies inside the limits, the one whose predicted loss is least.

A policy takes one pair of widths per layer: a 0/1 variable for every (layer, weight format, activation format), of which
each layer takes one. Loss and costs are then sums over what is taken, ties are equations, and products of two decisions
in different layers are linearised; HiGHS (``scipy.optimize.milp``) solves it to proven optimality.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from haqsearch.agents.problem import Key, Problem
from haqsearch.errors import BudgetError, SearchError
from haqsearch.spec import Choice, Limit

Floats = npt.NDArray[np.float64]
Pairs = Mapping[tuple[int, int], Floats]

_SCALE = 1e3  # of a limit in its row: HiGHS lets a row exceed its bound by 1e-6, here 1e-9 of the limit
_CUTS = 64  # solutions found a rounding error outside a limit before the solver gives up


@dataclass(frozen=True)
class _Group:
    """A layer's decision: positions of its variables in the space (equal where it has one), and its pairs of indices."""

    layer: str
    weight: int
    activation: int
    pairs: tuple[tuple[int, int], ...]


class Assignment:
    """The additive part of a problem as a 0/1 program, built once and solved for many objectives.

    limits  those that are to be kept: their metrics have to be sums over the layers; default all of the problem's

    Raises BudgetError if a limited metric is not additive, naming it.
    """

    def __init__(self, problem: Problem, limits: Sequence[Limit] | None = None) -> None:
        self.problem = problem
        self.limits = tuple(problem.limits if limits is None else limits)
        for limit in self.limits:
            if limit.metric not in problem.costing.additive:
                raise BudgetError(
                    f"budget {limit.text!r}: {limit.metric} is not a sum over the layers, so an exact solver cannot keep it; "
                    "agents that evaluate whole policies can: funnel, evolution, nsga2, gp, tpe, ddpg, random"
                )
        self.sizes = [len(variable.candidates) for variable in problem.space.variables]

    @cached_property
    def _groups(self) -> list[_Group]:
        space = self.problem.space
        found = []
        for layer in space.model.quantizable:
            at = {v.role: i for i, v in enumerate(space.variables) if layer.name in v.layers}
            weight, activation = at["weight"], at["activation"]
            pairs = tuple((w, a) for w in range(self.sizes[weight]) for a in range(self.sizes[activation]))
            found.append(_Group(layer.name, weight, activation, pairs))
        return found

    @cached_property
    def _columns(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Of every 0/1 variable: its group, and the indices of its weight and activation candidates."""
        rows = [(g, w, a) for g, group in enumerate(self._groups) for w, a in group.pairs]
        table = np.array(rows, dtype=np.intp).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    @cached_property
    def costs(self) -> Floats:
        """[limit, 0/1 variable]: what each pair adds to each limited metric, as a share of the limit."""
        space, costing = self.problem.space, self.problem.costing
        rows = []
        for group in self._groups:
            weights, activations = (
                space.variables[group.weight].candidates,
                space.variables[group.activation].candidates,
            )
            for w, a in group.pairs:
                values = costing.layer_values(group.layer, Choice(weights[w], activations[a]))
                rows.append([values[limit.metric] / limit.value for limit in self.limits])
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.limits)).T

    @cached_property
    def _fixed(self) -> Floats:
        """[limit]: shares of the layers without a decision, those that stay in float."""
        from haqsearch.spec.policy import FLOAT_CHOICE

        total = np.zeros(len(self.limits))
        for layer in self.problem.space.model:
            if not layer.quantizable:
                values = self.problem.costing.layer_values(layer.name, FLOAT_CHOICE)
                total += [values[limit.metric] / limit.value for limit in self.limits]
        return total

    @cached_property
    def _cells(self) -> list[Floats]:
        """Per group [limit, weight candidates, activation candidates]: ``costs`` as tables."""
        group, _, _ = self._columns
        return [
            self.costs[:, group == g].reshape(len(self.limits), self.sizes[one.weight], self.sizes[one.activation])
            for g, one in enumerate(self._groups)
        ]

    def shares(self, keys: npt.NDArray[np.intp]) -> Floats:
        """[limit, policy]: the limited metrics of many policies, [policy, variable of the space], as shares of their limits.

        Sums in floating point: within 1e-12 of a limit the costing itself decides.
        """
        total = np.repeat(self._fixed[:, None], len(keys), axis=1)
        for one, cells in zip(self._groups, self._cells, strict=True):
            total += cells[:, keys[:, one.weight], keys[:, one.activation]]
        return total

    def widened(self, keys: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """``keys`` [policy, variable of the space] with every width that adds to no limited metric, as ``take_free_bits``."""
        keys = keys.copy()
        for position, size in enumerate(self.sizes):
            mine = [(one, cells) for one, cells in zip(self._groups, self._cells, strict=True)
                    if position in (one.weight, one.activation)]  # fmt: skip
            # What the layers of this variable cost at each of its candidates, [candidate, limit, policy].
            at = np.zeros((size, len(self.limits), len(keys)))
            for one, cells in mine:
                for candidate in range(size):
                    weight = candidate if position == one.weight else keys[:, one.weight]
                    activation = candidate if position == one.activation else keys[:, one.activation]
                    at[candidate] += cells[:, weight, activation].reshape(len(self.limits), len(keys))
            now = np.take_along_axis(at, keys[None, None, :, position], axis=0)
            free = (at <= now).all(axis=1) & (np.arange(size)[:, None] >= keys[:, position])
            keys[:, position] = size - 1 - free[::-1].argmax(axis=0)
        return keys

    def solve(
        self,
        single: Sequence[Floats],
        within: Pairs | None = None,
        slack: float = 0.0,
        gap: float = 0.0,
        excluded: Sequence[Key] = (),
        seconds: float = 60.0,
    ) -> Key:
        """Indices of the policy with the least ``sum(single) + sum(within)`` inside ``(1 - slack) *`` every limit.

        single    per variable of the space the loss of each candidate
        within    loss of pairs of candidates, [candidates of i, candidates of j], by positions (i, j) in the space
        slack     in [0, 1): the share of every limit that is left free; negative: by how much limits may be exceeded
        gap       relative gap to the optimum at which the solver may stop; 0: proven optimal
        excluded  policies not to be found again
        seconds   before it takes the best found

        Raises BudgetError if no policy is inside.
        """
        cuts = [np.asarray(key) for key in excluded]
        for _ in range(_CUTS):
            key = self._solved(single, within or {}, slack, gap, cuts, seconds)
            if slack or self._inside(key):
                return key
            cuts.append(np.asarray(key))  # outside by a rounding error of the solver: never that one again
        raise SearchError(
            f"{_CUTS} solutions of the exact solver lie outside the limits by rounding; raise them a little"
        )

    def _inside(self, key: Key) -> bool:
        costs = self.problem.costing.costs(self.problem.space.policy(key))
        return all(limit.met(costs) for limit in self.limits)

    def _solved(
        self, single: Sequence[Floats], within: Pairs, slack: float, gap: float, cuts: Sequence[npt.NDArray[np.intp]],
        seconds: float,
    ) -> Key:  # fmt: skip
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        program = _Program(self, single, within)
        for limit in range(len(self.limits)):
            program.row(program.base, self.costs[limit] * _SCALE, -np.inf, (1 - slack - self._fixed[limit]) * _SCALE)
        for key in cuts:
            program.exclude(key)
        entries, columns, starts, low, high = program.matrix()
        matrix: Any = csr_array((entries, columns, starts), shape=(len(low), program.count))
        matrix.sum_duplicates()
        spread = float(np.ptp(program.loss)) or 1.0  # HiGHS has absolute tolerances: losses are brought to its scale
        with _silent():
            done = milp(
                program.loss / spread * 1e3,
                integrality=program.whole,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix, low, high),
                options={"mip_rel_gap": gap, "time_limit": seconds},
            )
        if done.x is None and done.status != 2:
            raise SearchError(f"the exact solver gave up after {seconds:g} s: {done.message}")
        if done.x is None:
            wanted = " and ".join(limit.text or limit.metric for limit in self.limits)
            raise BudgetError(
                f"no policy of the search space is inside {wanted}" + (f" less {slack:.1%}" if slack else "")
            )
        return program.key(done.x)


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS prints a line of its own debugging now and then, past Python, onto what may be a program's JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class _Program:
    """Rows and columns of one 0/1 program. The first columns are the layers' pairs; products and shared choices follow."""

    def __init__(self, of: Assignment, single: Sequence[Floats], within: Pairs) -> None:
        self.of = of
        group, weight, activation = of._columns
        self.base = np.arange(len(group))
        self.count = len(group)
        self.group, self.weight, self.activation = group, weight, activation
        self.rows: list[tuple[npt.NDArray[np.intp], Floats, float, float]] = []
        self._indicators: dict[tuple[int, int], npt.NDArray[np.intp]] = {}
        self.loss = np.zeros(self.count)
        counted: set[int] = set()
        for g, one in enumerate(of._groups):
            mine = np.flatnonzero(group == g)
            self.row(mine, np.ones(len(mine)), 1, 1)
            for position, index in ((one.weight, weight[mine]), (one.activation, activation[mine])):
                if position not in counted:  # a shared activation is paid once
                    self.loss[mine] += np.asarray(single[position])[index]
                counted.add(position)
                for i in range(of.sizes[position]):
                    columns = mine[index == i]
                    first = self._indicators.setdefault((position, i), columns)
                    if first is not columns:  # a tie: all its layers take the same candidate
                        both = np.concatenate([first, columns])
                        self.row(both, np.concatenate([np.ones(len(first)), -np.ones(len(columns))]), 0, 0)
        self._whole = [1] * self.count
        own = {(one.weight, one.activation): g for g, one in enumerate(of._groups)}
        extra: list[float] = []
        for (i, j), losses in within.items():
            if (i, j) in own:  # of one layer: a pair has its own column already
                mine = np.flatnonzero(group == own[i, j])
                self.loss[mine] += losses[weight[mine], activation[mine]]
                continue
            extra += self._products(i, j, losses)
        self.loss = np.concatenate([self.loss, extra])

    def _products(self, i: int, j: int, losses: Floats) -> list[float]:
        """Columns z[p, q] = (variable i takes p) and (variable j takes q): their sums over q and p are the indicators."""
        p, q = losses.shape
        first = self.count
        self.count += p * q
        self._whole += [0] * (p * q)  # whole by themselves once the decisions are
        z = np.arange(first, self.count).reshape(p, q)
        for position, lines in ((i, z), (j, z.T)):
            for index, line in enumerate(lines):
                taken = self._indicators[position, index]
                columns = np.concatenate([line, taken])
                self.row(columns, np.concatenate([np.ones(len(line)), -np.ones(len(taken))]), 0, 0)
        return [float(loss) for loss in losses.ravel()]

    def row(self, columns: npt.NDArray[np.intp], values: Floats, low: float, high: float) -> None:
        self.rows.append((columns, values, low, high))

    def exclude(self, key: npt.NDArray[np.intp]) -> None:
        """A row that this very policy alone breaks."""
        columns = np.concatenate([self._indicators[position, int(index)] for position, index in enumerate(key)])
        self.row(columns, np.ones(len(columns)), -np.inf, len(key) - 1)

    def matrix(self) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.intp], Floats, Floats]:
        entries = np.concatenate([values for _, values, _, _ in self.rows])
        columns = np.concatenate([columns for columns, _, _, _ in self.rows])
        starts = np.cumsum([0, *(len(columns) for columns, _, _, _ in self.rows)])
        low, high = (np.array([row[k] for row in self.rows], dtype=np.float64) for k in (2, 3))
        return entries, columns, starts, low, high

    @property
    def whole(self) -> npt.NDArray[np.intp]:
        return np.array(self._whole)

    def key(self, x: Floats) -> Key:
        taken = [0] * len(self.of.sizes)
        for g, one in enumerate(self.of._groups):
            mine = np.flatnonzero(self.group == g)
            best = mine[int(np.argmax(x[mine]))]
            taken[one.weight], taken[one.activation] = int(self.weight[best]), int(self.activation[best])
        return tuple(taken)
