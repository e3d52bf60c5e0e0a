"""Measured devices against themselves: half of the cells predicted from the other half, and sums of layers against whole
networks. The figures are those of the machine whose tables come with the package, ``host`` with all its instructions and
``host-avx2`` kept to AVX2; measure your own with ``haqsearch hw measure``."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, Format, ModelSpec, Policy
from hwmodels.literature import FOLDER, Row, read
from hwmodels.meter import Meter
from hwmodels.overlay import Measured
from hwmodels.profile import list_profiles, load
from hwmodels.table import Row as Cell
from hwmodels.table import Shape, widths

DEVICES = ("host", "host-avx2")


def networks(device: Measured) -> dict[str, ModelSpec]:
    """The networks whose layers the table names, as the shapes that it has for them."""
    layers: dict[str, dict[str, Shape]] = {}
    for row in device.table_rows.rows:
        if row.network:
            layers.setdefault(row.network, {})[row.layer] = row.shape
    return {
        name: ModelSpec(name, tuple(s.layer(layer) for layer, s in found.items())) for name, found in layers.items()
    }


def half_from_half(device: Measured, seed: int = 0) -> list[tuple[Cell, float]]:
    """Every cell of a random half of the table with what the other half predicts for it, in seconds.

    A cell is a layer's shape at a pair of widths: what another layer of the very shape took is not given away.
    """
    cells = sorted({_key(row) for row in device.table_rows.rows}, key=repr)
    hidden = set(random.Random(seed).sample(cells, len(cells) // 2))
    half = device.without(lambda row: _key(row) in hidden)
    bound = {name: half.bind(model) for name, model in networks(device).items()}
    found = []
    for row in device.table_rows.rows:
        if _key(row) in hidden:
            cost = bound.get(row.network, half).cost(row.shape.layer(row.layer or "layer"), row.choice, row.batch)
            found.append((row, cost.values["latency_s"]))
    return found


def _key(row: Cell) -> tuple[Shape, int, int, int]:
    return row.shape, row.batch, *widths(row.choice)


def cells(name: str, network: str) -> list[Row]:
    """Cells of ``network`` on the device ``name`` that were left out, predicted from the others."""
    device, group = _device(name), f"{name}_cells_{network}"
    return [
        Row(group, name, f"{cell.layer} {cell.choice}", "latency_s", cell.latency_s, predicted, _source(device))
        for cell, predicted in half_from_half(device)
        if cell.network == network
    ]


def whole(name: str, network: str) -> list[Row]:
    """Whole runs of ``network`` on the device ``name`` under mixed policies, against the sums of their layers."""
    device, group = _device(name), f"{name}_{network}"
    model = networks(device)[network]
    found = []
    for i, row in enumerate(r for r in read(f"{name}_networks") if r["network"] == network):
        pairs = zip(map(int, row["weight_bits"].split()), map(int, row["activation_bits"].split()), strict=True)
        choices = [Choice(Format("int", w), Format("uint", a)) for w, a in pairs]
        policy = Policy({layer.name: choice for layer, choice in zip(model, choices, strict=True)})
        predicted = Meter(device, model, int(row["batch"])).costs(policy)["latency_s"]
        found.append(Row(group, name, f"policy {i}", "latency_s", float(row["latency_s"]), predicted, _source(device)))
    return found


def _device(name: str) -> Measured:
    device = load(name)
    if not isinstance(device, Measured):
        raise HardwareError(f"{name}: has no measured table; haqsearch hw measure writes one")
    return device


def _source(device: Measured) -> str:
    return "; ".join(device.profile.sources)


def _sets(kind: Callable[[str, str], list[Row]], infix: str) -> dict[str, Callable[[], list[Row]]]:
    """A set for each network that was measured on each device."""
    found: dict[str, Callable[[], list[Row]]] = {}
    for name in DEVICES:
        if name in list_profiles() and (FOLDER / f"{name}_networks.csv").is_file():
            for network in dict.fromkeys(row["network"] for row in read(f"{name}_networks")):
                found[f"{name}{infix}_{network}"] = partial(kind, name, network)
    return found


CELLS = _sets(cells, "_cells")
WHOLE = _sets(whole, "")
SETS = {**CELLS, **WHOLE}

FITTED = dict.fromkeys(
    WHOLE, "layers are scaled to add up to whole runs of one pair of widths everywhere; not to these"
)
