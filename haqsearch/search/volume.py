"""How good a front is, as one number: the share of a box, from perfect at no cost to a reference point, that it dominates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from haqsearch.search.records import Record
from haqsearch.spec import Limit, Objective, front, hypervolume


class FrontVolume:
    """The front of the records added so far and its hypervolume, as a share in [0, 1]. It never falls.

    The box: on the objective from perfect (accuracy 1, KL or loss 0) to the worst uniform baseline evaluated, and on every
    metric from 0 to ``costs``. What is no better than the reference point in one of them adds nothing.

    objective  what the records' scores are of
    costs      the reference by metric of the trade-off, in base units (``reference_costs``)
    """

    def __init__(self, objective: Objective, costs: Mapping[str, float]) -> None:
        self.objective, self.costs = objective, dict(costs)
        self.worst: float | None = None  # score of the worst uniform baseline
        self._points: list[tuple[float, ...]] = []

    def add(self, records: Sequence[Record]) -> None:
        """Take in finished trials; infeasible, pruned and failed ones are on no front."""
        for record in records:
            if record.score is None or not record.feasible:
                continue
            metrics = record.evaluation.metrics
            self._points.append((self.objective.ideal - record.score, *(metrics[name] for name in self.costs)))
            if record.source == "uniform":
                self.worst = record.score if self.worst is None else min(self.worst, record.score)
        self._points = [self._points[i] for i in front(self._points)]

    def __len__(self) -> int:
        """Points of the front."""
        return len(self._points)

    @property
    def share(self) -> float:
        """The hypervolume; 0.0 while no uniform baseline has been evaluated, and where that is perfect."""
        if self.worst is None:
            return 0.0
        reference = (self.objective.ideal - self.worst, *self.costs.values())
        box = prod(reference)
        return hypervolume(self._points, reference) / box if box > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the hypervolume and the reference point it is measured from, metrics in base units."""
        sign = self.objective.sign
        worst = None if self.worst is None else sign * self.worst
        return {"hypervolume": self.share, "reference": {self.objective.name: worst, **self.costs}, "front": len(self)}


def reference_costs(tradeoff: Sequence[str], limits: Sequence[Limit], int8: Mapping[str, float]) -> dict[str, float]:
    """Where the box ends, by metric of the trade-off: at its lowest limit, or at all layers' 8/8 where it has none."""
    lowest: dict[str, float] = {}
    for limit in limits:
        lowest[limit.metric] = min(limit.value, lowest.get(limit.metric, limit.value))
    return {metric: lowest.get(metric, int8[metric]) for metric in tradeoff}
