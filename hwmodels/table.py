"""Measured latencies laid over an analytic model.

A row that was measured wins. Elsewhere measured / analytic is interpolated, in logarithms, over widths and over layers of
the same operation with similar dimensions, and scales the analytic value: latencies of different shapes are never
averaged, only how wrong the model was about them. Every answer says which of these it is.

A table is a CSV file with the columns ``COLUMNS`` and any of ``OPTIONAL``, one row per layer shape, batch and pair of
widths (32 x 32 is float32). Rows that also name ``network`` and ``layer`` are for that layer; other layers of the shape
take the geometric mean of all rows that have it.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, inf, isfinite, log, log2
from pathlib import Path
from typing import Any

import numpy as np

from haqsearch.errors import HardwareError
from haqsearch.files import replacing
from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec, SearchSpace
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels.base import HardwareModel, LayerCost, candidates
from hwmodels.geometry import Loops
from hwmodels.schema import ProfiledDevice

_SHAPE = ("in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "out_h", "out_w", "groups")
COLUMNS = ("op", *_SHAPE, "batch", "weight_bits", "activation_bits", "latency_s")
OPTIONAL = ("energy_j", "network", "layer", "latency_min_s", "repeats")
OPS = ("conv2d", "depthwise_conv2d", "linear")
NEIGHBOURS = 32
CORRELATED = 8.0  # doublings of dimensions, or quadruple bits, over which the model is wrong alike
NOISE = 0.01  # of a measurement, relative to how much the ratios differ
BEYOND = 1.0  # doublings of a dimension outside of what was measured that still count as interpolation


@dataclass(frozen=True)
class Shape:
    """All that a measured layer is told apart by. Of a linear layer, ``out_h`` counts its rows."""

    op: str
    in_channels: int
    out_channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    out_h: int
    out_w: int
    groups: int

    @classmethod
    def of(cls, layer: LayerSpec) -> Shape | None:
        """Shape of ``layer``; None of an operation that tables do not have."""
        if layer.op == "linear":
            return cls(layer.op, layer.reduction, layer.out_channels, 1, 1, 1, 1, layer.out_pixels, 1, 1)
        if layer.op not in OPS or len(layer.out_shape) != 3 or len(layer.weight_shape) != 4:
            return None
        channels = layer.weight_shape[1] * layer.groups
        return cls(
            layer.op, channels, layer.out_channels, *layer.weight_shape[2:], *layer.stride, *layer.out_shape[1:],
            layer.groups,
        )  # fmt: skip

    def layer(self, name: str = "measured") -> LayerSpec:
        """A layer of this shape that is not the network's first."""
        c, n, rows, columns = self.in_channels, self.out_channels, self.out_h, self.out_w
        reduction = c // self.groups * self.kernel_h * self.kernel_w
        if self.op == "linear":
            several = (rows,) if rows > 1 else ()
            return LayerSpec(name, self.op, (*several, c), (n, c), (*several, n), rows * c * n, inputs=("previous",))
        return LayerSpec(
            name, self.op, (c, rows * self.stride_h, columns * self.stride_w),
            (n, c // self.groups, self.kernel_h, self.kernel_w), (n, rows, columns), rows * columns * n * reduction,
            self.groups, (self.stride_h, self.stride_w), (self.kernel_h, self.kernel_w), inputs=("previous",),
        )  # fmt: skip

    def __str__(self) -> str:
        return (
            f"{self.op} {self.in_channels} -> {self.out_channels}, kernel {self.kernel_h} x {self.kernel_w}, stride "
            f"{self.stride_h} x {self.stride_w}, output {self.out_h} x {self.out_w}, groups {self.groups}"
        )


@dataclass(frozen=True)
class Row:
    """One measurement: seconds (and joules) of ``batch`` samples of a layer at ``choice``; ``line`` of the file."""

    shape: Shape
    batch: int
    choice: Choice
    latency_s: float
    energy_j: float | None = None
    network: str = ""
    layer: str = ""
    line: int = 0


class MeasuredTable:
    """Rows of one file. ``where`` names it in messages."""

    def __init__(self, rows: Sequence[Row], where: str = "table") -> None:
        self.rows, self.where = tuple(rows), where

    @cached_property
    def digest(self) -> str:
        """Digest of all that was measured."""
        content = repr(
            [(r.shape, r.batch, str(r.choice), r.latency_s, r.energy_j, r.network, r.layer) for r in self.rows]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def _exact(self) -> dict[tuple[Shape, int, int, int], list[Row]]:
        found: dict[tuple[Shape, int, int, int], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.shape, row.batch, *_widths(row.choice)), []).append(row)
        return found

    def exact(self, shape: Shape, batch: int, choice: Choice, network: str = "", layer: str = "") -> tuple[Row, ...]:
        """The row of this layer of this network if there is one, else every row of its shape; none: not measured."""
        rows = self._exact.get((shape, batch, *_widths(choice)), [])
        own = [row for row in rows if row.network and (row.network, row.layer) == (network, layer)]
        return tuple(own or rows)

    def check(self, model: ModelSpec) -> None:
        """Raise HardwareError if a row that names a layer of ``model`` is for another shape."""
        for row in self.rows:
            if row.network == model.name and row.layer in model and Shape.of(model[row.layer]) != row.shape:
                raise HardwareError(
                    f"{self.where}:{row.line}: layer {row.layer!r} of {row.network} is {Shape.of(model[row.layer])}; this "
                    f"row is for {row.shape}: measure the layer again, or take its name off the row"
                )


class Measured(HardwareModel):
    """``device`` with ``table`` laid over it. ``extrapolation``: ``flag`` or ``refuse`` what is unlike every row."""

    def __init__(
        self, device: ProfiledDevice[Any], table: MeasuredTable, extrapolation: str = "flag", network: str = ""
    ) -> None:
        self.analytic, self.table_rows, self.extrapolation, self.network = device, table, extrapolation, network
        self.name, self.summary, self.metrics = device.name, device.summary, device.metrics
        self.default_batch, self.draft, self.profile = device.default_batch, device.draft, device.profile
        self.native_pairs, self.bandwidth_bytes_per_s = device.native_pairs, device.bandwidth_bytes_per_s
        pairs = {(w, a) for w in self.profile.precision.weight_bits for a in self.profile.precision.activation_bits}
        for row in table.rows:
            if not row.choice.weight.is_float and _widths(row.choice) not in pairs:
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
        self.table_rows.check(model)
        bound = copy(self)
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
        return replace(modelled, values=values, source=ratio.source)

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
        if known is None or Shape.of(layer) is None:
            return _Ratio(1.0, f"extrapolated: {self.table_rows.where} has no row of this operation")
        return known.at(self._features(layer, choice), batch, self.table_rows.where)


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

    @classmethod
    def of(cls, entries: Sequence[tuple[Row, list[float], float]]) -> _Ratios:
        rows, points, logs = zip(*entries, strict=True)
        return cls(rows, np.array(points), np.array(logs), np.array([float(row.batch) for row in rows]))

    def without(self, drop: Callable[[Row], bool]) -> _Ratios:
        kept = [i for i, row in enumerate(self.rows) if not drop(row)]
        return _Ratios(tuple(self.rows[i] for i in kept), self.points[kept], self.logs[kept], self.batches[kept])

    def at(self, point: Sequence[float], batch: int, where: str) -> _Ratio:
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


def _widths(choice: Choice) -> tuple[int, int]:
    return choice.weight.width, choice.activation.width


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
                whole_shape or (other.batch, _widths(other.choice)) == (row.batch, _widths(row.choice))
            )

        found.append(
            LeftOut(row, device.without(same).cost(row.shape.layer(), row.choice, row.batch).values["latency_s"])
        )
    return found


# -- files ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> MeasuredTable:
    """Table in the CSV file ``path``. Raises HardwareError with file, line, column and mend."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HardwareError(f"table.file: {path}: cannot read this table: {error}") from None
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        return _table(reader, path)
    except csv.Error as error:
        raise HardwareError(f"{path}:{reader.line_num}: not a CSV file: {error}") from None


def _table(reader: csv.DictReader[str], path: Path) -> MeasuredTable:
    names = reader.fieldnames or ()
    if missing := [name for name in COLUMNS if name not in names]:
        raise HardwareError(f"{path}:1: column {missing[0]} is missing; a table has {', '.join(COLUMNS)}")
    if unknown := [name for name in names if name not in (*COLUMNS, *OPTIONAL)]:
        raise HardwareError(f"{path}:1: unknown column {unknown[0]!r}; it may also have {', '.join(OPTIONAL)}")
    rows: dict[tuple[Any, ...], Row] = {}
    for cells in reader:
        row = _row(cells, f"{path}:{reader.line_num}", reader.line_num)
        key = (row.shape, row.batch, row.choice, row.network, row.layer)
        if key in rows:
            raise HardwareError(
                f"{path}:{row.line}: the same layer, batch and widths as line {rows[key].line} ({row.shape} at "
                f"{row.choice}); keep one of them, or name network and layer in both"
            )
        rows[key] = row
    if not rows:
        raise HardwareError(f"{path}:1: a table without rows; measure something, or take [table] out of the profile")
    return MeasuredTable(tuple(rows.values()), path.name)


def _row(cells: dict[str, Any], where: str, line: int) -> Row:
    if None in cells or None in cells.values():
        raise HardwareError(f"{where}: a row with more or fewer cells than the first line has columns")
    if cells["op"] not in OPS:
        raise HardwareError(f"{where}: op = {cells['op']!r}: tables have {', '.join(OPS)}")
    shape = Shape(cells["op"], *(_count(cells, column, where) for column in _SHAPE))
    if shape.in_channels % shape.groups or shape.out_channels % shape.groups:
        raise HardwareError(f"{where}: groups = {shape.groups}: does not divide in_channels and out_channels")
    w, a = (_count(cells, column, where) for column in ("weight_bits", "activation_bits"))
    if (w, a) == (32, 32):
        choice = FLOAT_CHOICE
    elif w > 16 or a > 16:
        raise HardwareError(
            f"{where}: weight_bits, activation_bits: 1 to 16, or 32 and 32 for float32; not {w} and {a}"
        )
    else:
        choice = Choice(Format("int", w), Format("uint", a))
    energy = _positive(cells, "energy_j", where) if cells.get("energy_j") else None
    latency = _positive(cells, "latency_s", where)
    names = cells.get("network") or "", cells.get("layer") or ""
    return Row(shape, _count(cells, "batch", where), choice, latency, energy, *names, line)


def _count(cells: dict[str, Any], column: str, where: str) -> int:
    try:
        value = int(cells[column])
    except ValueError:
        value = 0
    if not 1 <= value <= 2**30:
        raise HardwareError(f"{where}: {column} = {cells[column]!r}: should be a whole number, 1 or more")
    return value


def _positive(cells: dict[str, Any], column: str, where: str) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = inf
    if not isfinite(value) or not 1e-15 <= value <= 1e15:
        raise HardwareError(
            f"{where}: {column} = {cells[column]!r}: should be a positive number in the unit of its name"
        )
    return value


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` as a table that ``read`` takes, atomically."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "energy_j", "network", "layer"])
        for row in rows:
            shape = [getattr(row.shape, column) for column in ("op", *_SHAPE)]
            widths = [row.choice.weight.width, row.choice.activation.width]
            energy = "" if row.energy_j is None else repr(row.energy_j)
            writer.writerow([*shape, row.batch, *widths, repr(row.latency_s), energy, row.network, row.layer])
