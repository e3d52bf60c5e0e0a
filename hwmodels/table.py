"""Tables of measured layers: one CSV row per layer shape, batch and pair of widths (32 x 32 is float32).

A table has the columns ``COLUMNS`` and any of ``OPTIONAL``. Rows that also name ``network`` and ``layer`` are for that layer;
other layers of the shape take the geometric mean of all rows that have it. ``hwmodels.overlay`` lays a table over a device.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec
from haqsearch.spec.policy import FLOAT_CHOICE

_SHAPE = ("in_channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "out_h", "out_w", "groups")
COLUMNS = ("op", *_SHAPE, "batch", "weight_bits", "activation_bits", "latency_s")
OPTIONAL = ("energy_j", "network", "layer", "latency_min_s", "repeats")
OPS = ("conv2d", "depthwise_conv2d", "linear")


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
    """One measurement: seconds (and joules) of ``batch`` samples of a layer at ``choice``; ``line`` of the file. Where runs
    were repeated, the least of them and how many."""

    shape: Shape
    batch: int
    choice: Choice
    latency_s: float
    energy_j: float | None = None
    network: str = ""
    layer: str = ""
    line: int = 0
    latency_min_s: float | None = None
    repeats: int | None = None


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
            found.setdefault((row.shape, row.batch, *widths(row.choice)), []).append(row)
        return found

    def exact(self, shape: Shape, batch: int, choice: Choice, network: str = "", layer: str = "") -> tuple[Row, ...]:
        """The row of this layer of this network if there is one, else every row of its shape; none: not measured."""
        rows = self._exact.get((shape, batch, *widths(choice)), [])
        own = [row for row in rows if row.network and (row.network, row.layer) == (network, layer)]
        return tuple(own or rows)

    def misnamed(self, model: ModelSpec) -> dict[str, str]:
        """Layers of ``model`` that a row names, but with another shape: what is wrong with the first such row of each."""
        found: dict[str, str] = {}
        for row in self.rows:
            if row.network == model.name and row.layer in model and Shape.of(model[row.layer]) != row.shape:
                found.setdefault(
                    row.layer,
                    f"{self.where}:{row.line}: layer {row.layer!r} of {row.network} is {Shape.of(model[row.layer])}; this "
                    f"row is for {row.shape}: measure the layer again, or take its name off the row",
                )
        return found


def widths(choice: Choice) -> tuple[int, int]:
    """(weight, activation) bits."""
    return choice.weight.width, choice.activation.width


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
    named: dict[tuple[str, str], Row] = {}
    for cells in reader:
        row = _row(cells, f"{path}:{reader.line_num}", reader.line_num)
        key = (row.shape, row.batch, row.choice, row.network, row.layer)
        if key in rows:
            raise HardwareError(
                f"{path}:{row.line}: the same layer, batch and widths as line {rows[key].line} ({row.shape} at "
                f"{row.choice}); keep one of them, or name network and layer in both"
            )
        rows[key] = row
        first = named.setdefault((row.network, row.layer), row) if row.layer else row
        if first.shape != row.shape:
            raise HardwareError(
                f"{path}:{row.line}: layer {row.layer!r} of {row.network} has another shape here ({row.shape}) than in line "
                f"{first.line} ({first.shape}): a layer has one shape; mend the row, or take its name off"
            )
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
    least = _positive(cells, "latency_min_s", where) if cells.get("latency_min_s") else None
    repeats = _count(cells, "repeats", where) if cells.get("repeats") else None
    return Row(shape, _count(cells, "batch", where), choice, latency, energy, *names, line, least, repeats)


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


def to_csv(rows: Iterable[Row]) -> str:
    """``rows`` as the text of a table that ``read`` takes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *OPTIONAL])
    for row in rows:
        shape = [getattr(row.shape, column) for column in ("op", *_SHAPE)]
        optional = ["" if (value := getattr(row, column)) is None else value for column in OPTIONAL]
        writer.writerow([*shape, row.batch, *widths(row.choice), row.latency_s, *optional])
    return out.getvalue()
