"""Layers that somebody's simulator priced, held against ours: HAQ's table of its cloud accelerator, BitFusion's simulator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import hwmodels
from haqsearch.spec import Choice, Format, LayerSpec
from hwmodels.literature import Row, read

_HAQ = "mit-han-lab/haq:lib/simulator/lookup_tables/qmobilenetv2_imagenet100_batch16_latency_table.npy (MIT), cycles"
_BITFUSION = {
    "bitfusion_8x8": (
        "bitfusion",
        "hsharma35/bitfusion: the simulator's formulas and search, conf.ini, 21 layers x 2 batches x 16 width pairs",
    ),
    "bitfusion_16x32": (
        "bitfusion-16x32",
        "hsharma35/bitfusion:results/bitfusion-eyeriss-sim-sweep.csv (192 bits per cycle), each shape once; energy is the "
        "simulator's formula of the accesses printed there",
    ),
}


def haq_cells() -> list[Row]:
    """MobileNetV2 on HAQ's cloud accelerator, batch 16: 53 layers x 64 width pairs, seconds of a layer."""
    device, rows = hwmodels.load("bismo-cloud"), []
    frequency = 210e6  # turns the table's cycles into HAQ's latencies
    for record in read("haq_mobilenetv2_cloud"):
        layer = layer_of(record)
        for w in range(1, 9):
            for a in range(1, 9):
                predicted = device.cost(layer, _widths(w, a), 16).values["latency_s"]
                case = f"layer {record['layer']} ({record['op']}) w{w}a{a}"
                published = float(record[f"w{w}a{a}"]) / frequency
                rows.append(Row("haq_table_cells", device.name, case, "latency_s", published, predicted, _HAQ))
    return rows


def haq_sums() -> list[Row]:
    """The same table summed over the network, for each of the 64 uniform width pairs."""
    sums: dict[str, list[float]] = {}
    for row in haq_cells():
        pair = sums.setdefault(row.case.split()[-1], [0.0, 0.0])
        pair[0], pair[1] = pair[0] + row.published, pair[1] + row.predicted
    return [
        Row("haq_table_sums", "bismo-cloud", f"MobileNetV2 {pair}", "latency_s", published, predicted, _HAQ)
        for pair, (published, predicted) in sums.items()
    ]


def _bitfusion(name: str) -> list[Row]:
    device, (_, source) = hwmodels.load(_BITFUSION[name][0]), _BITFUSION[name]
    frequency, rows = 500e6, []
    for record in read(name):
        w, a, batch, copies = (int(record[key]) for key in ("weight_bits", "activation_bits", "batch", "copies"))
        cost = device.cost(layer_of(record), _widths(w, a), batch).values
        published = {"latency_s": float(record["cycles"]) / frequency, "energy_j": float(record["energy_j"])}
        for metric, value in published.items():
            case = f"{record['layer']} batch {batch} w{w}a{a}"
            # The simulator has no depthwise operator: such a layer is so many copies of a convolution of one channel.
            rows.append(Row(name, device.name, case, metric, value, copies * cost[metric], source))
    return rows


SETS: dict[str, Callable[[], list[Row]]] = {
    "haq_table_sums": haq_sums,
    "haq_table_cells": haq_cells,
    **{name: partial(_bitfusion, name) for name in _BITFUSION},
}

FITTED = {
    "haq_table_sums": "the schedule was inferred from this table",
    "haq_table_cells": "the schedule was inferred from this table",
}


def layer_of(record: dict[str, str]) -> LayerSpec:
    """The square layer of a row: ``in_channels out_channels kernel stride out_hw``, and ``groups`` and ``first`` where given."""
    c, n, k, s, out = (int(record[key]) for key in ("in_channels", "out_channels", "kernel", "stride", "out_hw"))
    groups = int(record.get("groups", 1))
    first = record.get("first", "0") == "1" or record.get("layer") == "0"
    inputs = () if first else ("previous",)
    if out == 1 and k == 1:
        return LayerSpec("layer", "linear", (c,), (n, c), (n,), c * n, inputs=inputs)
    op = "depthwise_conv2d" if groups == c and groups > 1 else "conv2d"
    shapes = ((c, out * s, out * s), (n, c // groups, k, k), (n, out, out))
    return LayerSpec("layer", op, *shapes, n * (c // groups) * k * k * out * out, groups, (s, s), (k, k), inputs=inputs)


def _widths(w: int, a: int) -> Choice:
    return Choice(Format("int", w), Format("uint", a))
