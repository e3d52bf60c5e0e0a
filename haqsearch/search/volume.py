"""The front of a search, and how good it is as one number: the share that it dominates of a box, which ends at a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from haqsearch.search.records import Record
from haqsearch.spec import Objective, dominates, hypervolume


class FrontVolume:
    """The front of the records added so far and its hypervolume, as a share in [0, 1]. It never falls.

    The box: on the objective from perfect to the worst uniform baseline evaluated, and on every metric from 0 to ``costs``. The
    objective stands on its even scale (``Objective.even``): accuracy from 1 down, an error's logarithm from 1e-6 up. What is
    no better than the reference point in one of them adds nothing.

    objective  what the records' scores are of
    costs      the reference by metric of the trade-off, in base units (``Problem.reference``); none: the front is the best
    """

    def __init__(self, objective: Objective, costs: Mapping[str, float]) -> None:
        self.objective, self.costs = objective, dict(costs)
        self.worst: float | None = None  # score of the worst uniform baseline
        self.newest: int | None = None  # number of the trial that entered the front last
        self._points: list[tuple[float, ...]] = []

    def add(self, records: Sequence[Record]) -> None:
        """Take in finished trials; infeasible, pruned and failed ones are on no front."""
        for record in records:
            if record.score is None or not record.feasible:
                continue
            metrics = record.evaluation.metrics
            point = (-record.score, *(metrics[name] for name in self.costs))
            if not any(other == point or dominates(other, point) for other in self._points):
                self._points = [other for other in self._points if not dominates(point, other)] + [point]
                self.newest = record.number
            if record.source == "uniform":
                self.worst = record.score if self.worst is None else min(self.worst, record.score)

    def __len__(self) -> int:
        """Points of the front."""
        return len(self._points)

    @property
    def share(self) -> float:
        """The hypervolume; 0.0 while no uniform baseline has been evaluated, and where that is perfect."""
        if self.worst is None:
            return 0.0
        reference = (self._gap(self.worst), *self.costs.values())
        box = prod(reference)
        points = [(self._gap(-point[0]), *point[1:]) for point in self._points]
        return hypervolume(points, reference) / box if box > 0 else 0.0

    def _gap(self, score: float) -> float:
        """What a perfect network has more, on the even scale."""
        return self.objective.even(self.objective.ideal) - self.objective.even(score)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the hypervolume and the reference point it is measured from, metrics in base units."""
        sign = self.objective.sign
        worst = None if self.worst is None else sign * self.worst
        return {"hypervolume": self.share, "reference": {self.objective.name: worst, **self.costs}, "front": len(self)}
