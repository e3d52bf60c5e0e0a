"""A measured table laid over an analytic device.

A row that was measured wins. Elsewhere measured / analytic is interpolated, in logarithms, over widths and over layers of
the same operation with similar dimensions, and scales the analytic value: latencies of different shapes are never
averaged, only how wrong the model was about them. Every answer says which of these it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp, log, log2
from typing import Any

import numpy as np

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, LayerSpec, ModelSpec, SearchSpace
from hwmodels.base import HardwareModel, LayerCost, candidates
from hwmodels.geometry import Loops
from hwmodels.schema import ProfiledDevice
from hwmodels.table import MeasuredTable, Row, Shape, widths

NEIGHBOURS = 32
CORRELATED = 8.0  # doublings of dimensions, or quadruple bits, over which the model is wrong alike
NOISE = 0.01  # of a measurement, relative to how much the ratios differ
BEYOND = 1.0  # doublings of a dimension outside of what was measured that still count as interpolation


class Measured(HardwareModel):
    """``device`` with ``table`` laid over it.

    ``extrapolation``: ``flag`` or ``refuse`` what is unlike every row, and rows that name a layer of the network but are for
    another shape: flagged, they serve other layers of their own shape.
    """

    def __init__(
        self, device: ProfiledDevice[Any], table: MeasuredTable, extrapolation: str = "flag", network: str = ""
    ) -> None:
        self.analytic, self.table_rows, self.extrapolation, self.network = device, table, extrapolation, network
        self.misnamed: dict[str, str] = {}
        self.name, self.summary, self.metrics = device.name, device.summary, device.metrics
        self.default_batch, self.draft, self.profile = device.default_batch, device.draft, device.profile
        self.native_pairs, self.bandwidth_bytes_per_s = device.native_pairs, device.bandwidth_bytes_per_s
        pairs = {(w, a) for w in self.profile.precision.weight_bits for a in self.profile.precision.activation_bits}
        for row in table.rows:
            if not row.choice.weight.is_float and widths(row.choice) not in pairs:
                raise HardwareError(
                    f"{table.where}:{row.line}: weight_bits, activation_bits: {row.choice} is not among the widths of "
                    f"{device.name}; add them to precision, or take the row out"
                )

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.analytic.digest} {self.table_rows.digest}".encode()).hexdigest()[:16]

    def native(self, layer: LayerSpec, choice: Choice) -> tuple[int, int] | None:
        """(weight, activation) widths that the layer is executed at; None if it cannot be."""
        return self.analytic.native(layer, choice)

    def stored(self, layer: LayerSpec, choice: Choice) -> Choice:
        return self.analytic.stored(layer, choice)

    def peak_macs_per_s(self, w: int, a: int) -> float:
        """Of the analytic model: multiply-accumulates per second of a layer that fills the arithmetic."""
        return self.analytic.peak_macs_per_s(w, a)

    def bind(self, model: ModelSpec) -> Measured:
        misnamed = self.table_rows.misnamed(model)
        if misnamed and self.extrapolation == "refuse":
            raise HardwareError(next(iter(misnamed.values())))
        bound = copy(self)
        bound.misnamed = misnamed
        bound.analytic, bound.network = self.analytic.bind(model), model.name
        bound.__dict__["_known"] = self._known  # of rows on their own, whatever the network
        return bound

    def without(self, drop: Callable[[Row], bool]) -> Measured:
        """This device without the rows that ``drop`` is true of."""
        fewer = copy(self)
        fewer.table_rows = MeasuredTable([row for row in self.table_rows.rows if not drop(row)], self.table_rows.where)
        ratios = {kind: known.without(drop) for kind, known in self._known.items()}
        fewer.__dict__["_known"] = {kind: known for kind, known in ratios.items() if known.rows}
        return fewer

    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        if not self.analytic.supports(layer, choice):
            return False
        if self.extrapolation == "flag" or not layer.quantizable:
            return True
        return not self._ratio(layer, choice, self.default_batch).source.startswith("extrapolated")

    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> LayerCost:
        modelled = self.analytic.cost(layer, choice, batch)
        if not self.supports(layer, choice):
            raise HardwareError(
                f"{self.name}: layer {layer.name!r} at {choice} is unlike every row of {self.table_rows.where}: measure it, "
                'or allow estimates by extrapolation = "flag"'
            )
        shape = Shape.of(layer)
        rows = self.table_rows.exact(shape, batch, choice, self.network, layer.name) if shape else ()
        if rows:
            values = {**modelled.values, "latency_s": _mean([row.latency_s for row in rows])}
            joules = [row.energy_j for row in rows if row.energy_j is not None]
            if joules and "energy_j" in values:
                values["energy_j"] = _mean(joules)
            return replace(modelled, values=values, source=f"measured {self.table_rows.where}:{rows[0].line}")
        ratio = self._ratio(layer, choice, batch)
        values = {**modelled.values, "latency_s": modelled.values["latency_s"] * ratio.factor}
        wrong = f" ({self.misnamed[layer.name]})" if layer.name in self.misnamed else ""
        return replace(modelled, values=values, source=ratio.source + wrong)

    # -- interpolation --------------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> dict[str, _Ratios]:
        """Of each kind of loops, how wrong the analytic model is about its rows."""
        found: dict[str, list[tuple[Row, list[float], float]]] = {}
        for row in self.table_rows.rows:
            layer = row.shape.layer()
            analytic = self.analytic.cost(layer, row.choice, row.batch).values["latency_s"]
            features = self._features(layer, row.choice)
            found.setdefault(Loops.of(layer).kind, []).append((row, features, log(row.latency_s / analytic)))
        return {kind: _Ratios.of(entries) for kind, entries in found.items()}

    def _features(self, layer: LayerSpec, choice: Choice) -> list[float]:
        """Where a layer stands among others: doublings of its dimensions, and the widths it is executed at."""
        loops, native = Loops.of(layer), self.native(layer, choice) or (32, 32)
        dimensions = (loops.groups * loops.outputs, loops.channels, loops.taps, loops.pixels)
        return [*(log2(max(size, 1)) for size in dimensions), *(bits / 4 for bits in native)]

    def _ratio(self, layer: LayerSpec, choice: Choice, batch: int) -> _Ratio:
        """Factor for the analytic latency of a layer that was not measured."""
        known = self._known.get(Loops.of(layer).kind)
        shape = Shape.of(layer)
        if known is None or shape is None:
            return _Ratio(1.0, f"extrapolated: {self.table_rows.where} has no row of this operation")
        point = tuple(self._features(layer, choice))
        # The very layer at other widths says more than any other: it also has the operations that follow it there.
        return known.of_layer(self.network, layer.name, shape).at(point, batch, self.table_rows.where)


@dataclass(frozen=True)
class _Ratio:
    factor: float
    source: str


@dataclass(frozen=True)
class _Ratios:
    """Logarithms of measured / analytic of ``rows`` at points [row, feature], with the batch each was measured at."""

    rows: tuple[Row, ...]
    points: np.ndarray
    logs: np.ndarray
    batches: np.ndarray
    found: dict[tuple[tuple[float, ...], int], _Ratio] = field(default_factory=dict, compare=False)
    layers: dict[tuple[str, str, Shape], _Ratios] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, entries: Sequence[tuple[Row, list[float], float]]) -> _Ratios:
        rows, points, logs = zip(*entries, strict=True)
        return cls(rows, np.array(points), np.array(logs), np.array([float(row.batch) for row in rows]))

    def without(self, drop: Callable[[Row], bool]) -> _Ratios:
        return self._only([i for i, row in enumerate(self.rows) if not drop(row)])

    def of_layer(self, network: str, layer: str, shape: Shape) -> _Ratios:
        """Only the rows that name this layer of this network, if there are several; otherwise all."""
        key = (network, layer, shape)
        if network and key not in self.layers:
            kept = [i for i, row in enumerate(self.rows) if (row.network, row.layer, row.shape) == key]
            self.layers[key] = self._only(kept) if len(kept) > 1 else self
        return self.layers.get(key, self)

    def _only(self, kept: Sequence[int]) -> _Ratios:
        places = list(kept)
        return _Ratios(
            tuple(self.rows[i] for i in places), self.points[places], self.logs[places], self.batches[places]
        )

    def at(self, point: tuple[float, ...], batch: int, where: str) -> _Ratio:
        """Ratio at ``point`` for a batch; kept, because layers of a network repeat."""
        if (point, batch) not in self.found:
            self.found[point, batch] = self._kriged(point, batch, where)
        return self.found[point, batch]

    def _kriged(self, point: Sequence[float], batch: int, where: str) -> _Ratio:
        """Ordinary kriging over the nearest rows, of those measured at the nearest batch.

        Correlation falls off as exp(-distance / CORRELATED); repeated measurements of one shape are told apart as noise.
        """
        apart = np.abs(np.log2(self.batches / batch))
        of_batch = apart == apart.min()
        points, logs, here = self.points[of_batch], self.logs[of_batch], np.asarray(point)
        distance = np.sqrt(((points - here) ** 2).sum(axis=1))
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        around = points[nearest]
        between = np.sqrt(((around[:, None] - around[None]) ** 2).sum(axis=2))
        count = len(nearest)
        system = np.ones((count + 1, count + 1))  # the last row makes the weights sum to one
        system[:count, :count] = np.exp(-between / CORRELATED) + NOISE * np.eye(count)
        system[count, count] = 0.0
        weights = np.linalg.solve(system, np.append(np.exp(-distance[nearest] / CORRELATED), 1.0))[:count]
        seen = logs[nearest]
        factor = exp(float(np.clip(weights @ seen, seen.min(), seen.max())))
        outside = (here < points.min(axis=0) - BEYOND).any() or (here > points.max(axis=0) + BEYOND).any()
        word = "extrapolated" if outside else "interpolated"
        return _Ratio(factor, f"{word} from {count} rows of {where}: {factor:.3g} of the model")


def _mean(values: Sequence[float]) -> float:
    """Geometric mean; of one value, itself to the bit."""
    return values[0] if len(set(values)) == 1 else exp(sum(map(log, values)) / len(values))


# -- what a table covers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How the cells (layer x choice) of a search were priced: counts by the first word of their source, and the layers that
    were measured at every choice."""

    counts: dict[str, int]
    measured_layers: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of cells that were measured, in [0, 1]."""
        return self.counts.get("measured", 0) / max(sum(self.counts.values()), 1)


def coverage(device: HardwareModel, model: ModelSpec, space: SearchSpace, batch: int | None = None) -> Coverage:
    """Where the costs of ``space`` on ``device`` come from."""
    bound, batch = device.bind(model), batch or device.default_batch
    counts: Counter[str] = Counter()
    measured = []
    for name, choices in candidates(space).items():
        words = [bound.cost(model[name], choice, batch).source.split()[0].rstrip(":") for choice in choices]
        counts.update(words)
        if set(words) == {"measured"}:
            measured.append(name)
    return Coverage(dict(counts), tuple(measured))


@dataclass(frozen=True)
class LeftOut:
    """A row, and what the device says about it without it (and without the rows that tell the same)."""

    row: Row
    predicted_s: float

    @property
    def error(self) -> float:
        return self.predicted_s / self.row.latency_s - 1


def leave_one_out(device: Measured, whole_shape: bool = False) -> list[LeftOut]:
    """Predict every row from the others: without those of its shape, batch and widths, or (``whole_shape``) of its shape."""
    found = []
    for row in device.table_rows.rows:

        def same(other: Row, row: Row = row) -> bool:
            return other.shape == row.shape and (
                whole_shape or (other.batch, widths(other.choice)) == (row.batch, widths(row.choice))
            )

        found.append(
            LeftOut(row, device.without(same).cost(row.shape.layer(), row.choice, row.batch).values["latency_s"])
        )
    return found
