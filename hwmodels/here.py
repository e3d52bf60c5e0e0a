"""The device ``host`` against itself: half of its measured cells predicted from the other half, and sums of layers against
whole networks. The figures are those of the machine whose table comes with the package (``profiles/host.toml``); measure your
own with ``haqsearch hw measure``."""

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

DEVICE = "host"


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


def cells(network: str) -> list[Row]:
    """Cells of ``network`` that were left out, predicted from the others."""
    return [
        Row(
            f"host_cells_{network}",
            DEVICE,
            f"{cell.layer} {cell.choice}",
            "latency_s",
            cell.latency_s,
            predicted,
            _source(device),
        )
        for device in (_device(),)
        for cell, predicted in half_from_half(device)
        if cell.network == network
    ]


def whole(network: str) -> list[Row]:
    """Whole runs of ``network`` under mixed policies, against the sums of their layers."""
    device, name = _device(), f"host_{network}"
    model = networks(device)[network]
    found = []
    for i, row in enumerate(r for r in read("host_networks") if r["network"] == network):
        pairs = zip(map(int, row["weight_bits"].split()), map(int, row["activation_bits"].split()), strict=True)
        choices = [Choice(Format("int", w), Format("uint", a)) for w, a in pairs]
        policy = Policy({layer.name: choice for layer, choice in zip(model, choices, strict=True)})
        predicted = Meter(device, model, int(row["batch"])).costs(policy)["latency_s"]
        found.append(Row(name, DEVICE, f"policy {i}", "latency_s", float(row["latency_s"]), predicted, _source(device)))
    return found


def _device() -> Measured:
    device = load(DEVICE)
    if not isinstance(device, Measured):
        raise HardwareError(f"{DEVICE}: has no measured table; haqsearch hw measure writes one")
    return device


def _source(device: Measured) -> str:
    return "; ".join(device.profile.sources)


def _sets() -> dict[str, Callable[[], list[Row]]]:
    """One of cells and one of whole networks for each network that was measured."""
    if DEVICE not in list_profiles() or not (FOLDER / "host_networks.csv").is_file():
        return {}
    names = dict.fromkeys(row["network"] for row in read("host_networks"))
    return {
        **{f"host_cells_{name}": partial(cells, name) for name in names},
        **{f"host_{name}": partial(whole, name) for name in names},
    }


SETS = _sets()

FITTED = {
    name: "layers are scaled to add up to whole runs of one pair of widths everywhere; not to these"
    for name in SETS
    if not name.startswith("host_cells")
}
