"""Sensitivity tables: of an objective measured - each variable is narrowed alone, and the whole integer network is scored - or
calculated by one of ``measures``, without evaluating a policy.

Kept on disk, variable by variable, for the network, data, methods and candidates that they were measured with and no others: a
killed process loses one variable at most, and a table cannot go stale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from haqsearch.errors import HaqError, SearchError
from haqsearch.evaluate.evaluator import Evaluator
from haqsearch.evaluate.measures import MEASURES, measure_called
from haqsearch.evaluate.measures.base import Calculated, Measure, digest_of
from haqsearch.evaluate.metrics import BATCH
from haqsearch.files import write_json_atomic
from haqsearch.runtime.prefix import SharedPrefix
from haqsearch.spec import OBJECTIVES, SearchSpace, Sensitivity

Which = str | type[Measure]
"""An objective's name, one of ``MEASURES``, or a measure from elsewhere."""

_NARROWEST = 3  # candidates of a variable whose interactions are measured


class Sensitivities:
    """Sensitivity tables of ``space``: by every objective, from one set of scores of ``evaluator`` on its search split; by a
    measure, from its calibrate split.

    folder   where they are kept (in ``sensitivity/DIGEST.json``); None: nowhere
    samples  of the search split, from its start; None: all. This and what follows are of measured tables
    pairs    of how many of the most sensitive variables the interactions are measured, each pair at their three narrowest
             candidates (as CLADO does for all layers; Deng et al., 2023); 0: none
    within   whether each layer's weight and activation are measured together too, at every pair of candidates
    """

    def __init__(
        self, evaluator: Evaluator, space: SearchSpace, folder: Path | None = None, samples: int | None = None,
        pairs: int = 0, within: bool = False,
    ) -> None:  # fmt: skip
        self.evaluator, self.space, self.samples = evaluator, space, samples
        self.pairs, self.within = pairs, within
        self.folder = folder / "sensitivity" if folder else None
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Of all that the measured tables depend on."""
        if self._digest is None:
            prepared, splits = self.evaluator.prepared, self.evaluator.splits
            self._digest = digest_of(prepared, self.space, self.samples, (splits.calibrate[0], *splits.search))
        return self._digest

    @property
    def file(self) -> Path | None:
        """Where all that was measured is kept."""
        return self.folder / f"{self.digest}.json" if self.folder else None

    def measured(self, on_step: Callable[[int, int], None] = lambda done, whole: None) -> dict[str, dict[str, Any]]:
        """Scores of the base policy, of every variable at every candidate, and of the pairs, as they are on disk.

        ``on_step`` is called with the evaluations done and their number. Raises SearchError if one fails.
        """
        known: dict[str, dict[str, Any]] = {}
        if self.file and self.file.is_file():
            known = json.loads(self.file.read_text(encoding="utf-8"))
        self._measure(list(self._wanted(known)), known, on_step)
        self._measure(list(self._wanted_within(known)), known, on_step)
        self._measure(list(self._wanted_pairs(known)), known, on_step)
        return known

    def table(self, by: Which = "kl", on_step: Callable[[int, int], None] = lambda done, whole: None) -> Sensitivity:
        """The table by an objective or a measure; ``on_step`` hears of evaluations, or of samples, done and their number.

        Raises SearchError for what is neither, or if an evaluation fails; what the measure raises.
        """
        if calculated := self.calculated(by):
            return calculated.table(on_step)
        return self._by_objective(str(by), self._formats, self.measured(on_step))

    def calculated(self, by: Which) -> Calculated | None:
        """The keeper of a measure's table; None for an objective's. Raises SearchError for what is neither."""
        if isinstance(by, str) and by not in MEASURES:
            if by not in OBJECTIVES:
                raise SearchError(f"no sensitivity by {by!r}: there are {', '.join([*OBJECTIVES, *MEASURES])}")
            return None
        measure = measure_called(by) if isinstance(by, str) else by
        return Calculated(measure, self.evaluator.prepared, self.evaluator.splits, self.space, self.folder)

    def kept(self, by: Which = "kl") -> Sensitivity | None:
        """The table, if all of it lies on disk; None otherwise. Nothing is evaluated."""
        if calculated := self.calculated(by):
            return calculated.kept()
        if not (self.file and self.file.is_file()):
            return None
        known = json.loads(self.file.read_text(encoding="utf-8"))
        return None if any(self._wanted(known)) else self._by_objective(str(by), self._formats, known)

    # -- whole networks ---------------------------------------------------------------------------------------------

    @property
    def _formats(self) -> dict[str, tuple[str, ...]]:
        return {v.name: tuple(map(str, v.candidates)) for v in self.space.variables}

    @property
    def _widest(self) -> list[int]:
        return [len(v.candidates) - 1 for v in self.space.variables]

    def _wanted(self, known: dict[str, dict[str, Any]]) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
        if "" not in known:
            yield "", [tuple(self._widest)]
        for i, variable in enumerate(self.space.variables):
            if variable.name not in known:
                yield variable.name, [self._changed((i, c)) for c in range(len(variable.candidates) - 1)]

    def _changed(self, *changes: tuple[int, int]) -> tuple[int, ...]:
        key = self._widest
        for position, candidate in changes:
            key[position] = candidate
        return tuple(key)

    def _scores(self, key: Sequence[int]) -> dict[str, float]:
        policy = self.space.policy(key)
        try:
            with torch.no_grad():
                logits = self._shared.run(self.evaluator.prepared.lower(policy))
            scores = self.evaluator.judged(logits, "search", (0, self.samples))
        except (HaqError, RuntimeError) as error:
            raise SearchError(f"sensitivity: {policy.digest} cannot be scored: {error}") from error
        return {name: float(getattr(scores, name)) for name in OBJECTIVES}

    @cached_property
    def _shared(self) -> SharedPrefix:
        """What runs the programs: up to the first narrowed layer all are the base policy's, computed once."""
        base = self.evaluator.prepared.lower(self.space.policy(self._widest))
        return SharedPrefix(base, self.evaluator.splits.search[0][: self.samples].split(BATCH))

    def _measure(
        self, wanted: Sequence[tuple[str, list[tuple[int, ...]]]], known: dict[str, dict[str, Any]],
        on_step: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        whole, done = sum(len(keys) for _, keys in wanted), 0
        for name, keys in wanted:
            scores = {}
            for key in keys:
                scores[_text(key)] = self._scores(key)
                done += 1
                on_step(done, whole)
            known[name] = scores
            if self.file:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(self.file, known)

    def _wanted_within(self, known: dict[str, dict[str, Any]]) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
        """Weight and activation of every layer; an activation that several layers share, with each of their weights."""
        variables = self.space.variables if self.within else ()
        for i, one in enumerate(variables):
            for j, other in enumerate(variables):
                name = f"{variables[min(i, j)].name} {variables[max(i, j)].name}"
                if (
                    one.role == "weight"
                    and other.role == "activation"
                    and one.layers[0] in other.layers
                    and name not in known
                ):
                    low = [range(len(variables[k].candidates) - 1) for k in (i, j)]
                    yield name, [self._changed((i, p), (j, q)) for p in low[0] for q in low[1]]

    def _wanted_pairs(self, known: dict[str, dict[str, Any]]) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
        """Pairs of the variables that move the logits most at their narrowest."""
        if not self.pairs:
            return
        variables = self.space.variables
        rise = self._by_objective("logit_mse", self._formats, known).rise
        free = [i for i, variable in enumerate(variables) if len(variable.candidates) > 1]
        chosen = sorted(sorted(free, key=lambda i: -rise[variables[i].name][0])[: self.pairs])
        for i, j in combinations(chosen, 2):
            name = f"{variables[i].name} {variables[j].name}"
            if name not in known:
                low = [range(min(_NARROWEST, len(variables[k].candidates) - 1)) for k in (i, j)]
                yield name, [self._changed((i, p), (j, q)) for p in low[0] for q in low[1]]

    def _by_objective(
        self, measure: str, formats: Mapping[str, tuple[str, ...]], known: dict[str, dict[str, Any]]
    ) -> Sensitivity:
        sign = -OBJECTIVES[measure].sign  # rises are of what is made small

        def value(name: str, key: tuple[int, ...]) -> float:
            return sign * float(known[name][_text(key)][measure])

        variables = self.space.variables
        base = value("", tuple(self._widest))
        rise = {}
        for i, v in enumerate(variables):
            low = [value(v.name, self._changed((i, c))) - base for c in range(len(v.candidates) - 1)]
            rise[v.name] = (*low, 0.0)
        pairs = {}
        place = {v.name: i for i, v in enumerate(variables)}
        for name, scores in known.items():
            first, space, second = name.partition(" ")
            if space:
                i, j = place[first], place[second]
                table = [[0.0] * len(variables[j].candidates) for _ in variables[i].candidates]
                for key in scores:
                    taken = [int(index) for index in key.split(",")]
                    p, q = taken[i], taken[j]
                    table[p][q] = sign * float(scores[key][measure]) - base - rise[first][p] - rise[second][q]
                pairs[first, second] = tuple(map(tuple, table))
        return Sensitivity(measure, base, rise, formats, pairs)


def _text(key: Sequence[int]) -> str:
    return ",".join(map(str, key))
