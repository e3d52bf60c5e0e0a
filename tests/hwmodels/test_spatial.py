from __future__ import annotations

import csv
from itertools import permutations, product
from math import ceil
from pathlib import Path

import pytest
from device_shapes import conv, linear, mobilenet_v1, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.spec import Policy
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels.spatial import Spatial
from hwmodels.tiling import Nest

DEVICE = hwmodels.load("bitfusion")
PUBLISHED = Path(hwmodels.__file__).parent / "published"


@pytest.mark.parametrize(("name", "array", "rows"), [("bitfusion", "8x8", 672), ("bitfusion-16x32", "16x32", 45)])
def test_the_simulators_cycles_and_energies(name, array, rows):
    """The simulator has no depthwise operator: such a layer is ``copies`` one-channel convolutions. It prints cycles
    without rounding; the profiles round the energies of buffers to four digits."""
    device, seen = hwmodels.load(name), 0
    with (PUBLISHED / f"bitfusion_{array}.csv").open() as file:
        for row in csv.DictReader(file):
            c, n, k, out, stride, batch, copies, w, a = (
                int(row[key])
                for key in (
                    "in_channels out_channels kernel out_hw stride batch copies weight_bits activation_bits".split()
                )
            )
            first = {"inputs": ()} if row["first"] == "1" else {}
            layer = linear("fc", c, n) if out == 1 else conv("conv", c, n, k, out, stride, **first)
            cost = device.cost(layer, wa(w, a), batch).values
            assert round(copies * cost["latency_s"] * 500e6) == int(row["cycles"]), row
            assert copies * cost["energy_j"] == pytest.approx(float(row["energy_j"]), rel=1e-4), row
            seen += 1
    assert seen == rows


def test_haqs_mobilenet_v1():
    """HAQ (1811.08886) on BitFusion: uniform policies with the first and the last layer at 8 bits."""
    model = mobilenet_v1()
    pinned = {"conv0": wa(8, 8), "fc": wa(8, 8)}
    meter = hwmodels.Meter(DEVICE, model)
    for w, a, milliseconds in ((4, 4, 7.86), (4, 6, 11.10), (6, 6, 19.99), (8, 8, 20.08)):
        latency = meter.costs(Policy.uniform(model, wa(w, a), pinned))["latency_s"]
        assert latency * 1e3 == pytest.approx(milliseconds, rel=0.08), (w, a)


def test_peak_throughput():
    # 16 x 32 units at 500 MHz do 256 GMAC/s at 8 x 8 and four times that at 4 x 4; this array has 64 of 512 units.
    layer = conv("big", 1024, 1024, 3, 32)
    for bits, macs_per_cycle in ((8, 64), (4, 256), (2, 1024)):
        cost = DEVICE.cost(layer, wa(bits, bits), 16)
        assert cost.bound == "compute"
        assert 16 * layer.macs / (cost.values["latency_s"] * 500e6) == pytest.approx(macs_per_cycle, rel=1e-3)


def test_three_bits_are_multiplied_as_four():
    layer = conv("big", 1024, 1024, 3, 32)
    three, four, five = (DEVICE.cost(layer, wa(8, a), 16).values["latency_s"] for a in (3, 4, 5))
    assert three == pytest.approx(four, rel=1e-3)
    assert five == pytest.approx(2 * four, rel=1e-3)


def test_only_widths_up_to_the_widest_native_one():
    layer = linear("fc", 10, 10)
    assert DEVICE.supports(layer, wa(8, 8))
    assert not DEVICE.supports(layer, wa(9, 8))
    assert not DEVICE.supports(layer, wa(8, 16))


def test_float_takes_sixteen_passes():
    layer = conv("big", 1024, 1024, 3, 32)
    eight, float32 = (DEVICE.cost(layer, choice, 16).values["latency_s"] for choice in (wa(8, 8), FLOAT_CHOICE))
    assert float32 == pytest.approx(16 * eight, rel=1e-3)


def test_grouped_convolution_is_its_groups_one_by_one():
    grouped, one = conv("grouped", 64, 64, 3, 16, groups=4), conv("one", 16, 16, 3, 16)
    for device in map(hwmodels.load, ("bitfusion", "bismo-edge", "bismo-cloud", "mpic")):
        whole, part = (device.cost(layer, wa(4, 4), 1).values for layer in (grouped, one))
        assert whole["latency_s"] == pytest.approx(4 * part["latency_s"])
        assert whole["energy_j"] == pytest.approx(4 * part["energy_j"])


@given(
    nest=st.builds(
        Nest, *[st.integers(1, 6)] * 3, *[st.integers(1, 20)] * 2, st.sampled_from([(1, 1), (3, 3), (1, 3)]),
        st.sampled_from([(1, 1), (2, 2)]), st.booleans(),
    ),
    half=st.tuples(*[st.integers(1, 2000)] * 3),
    port=st.integers(1, 300),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_search_finds_what_trying_everything_finds(nest, half, port):
    """All tilings and all 120 orders, one by one, in plain Python."""
    profile = DEVICE.profile.model_copy(deep=True)
    for buffer, size in zip(("weights", "activations", "outputs"), half, strict=True):
        object.__setattr__(getattr(profile.memory, buffer), "size_bytes", size)
    object.__setattr__(profile.memory.dram, "bandwidth_bits_per_cycle", float(port))
    found = Spatial(profile)._best(nest, 4, 4, (4, 4)).cycles
    assert found == min(_tried(nest, [4.0 * size for size in half], port))


def _tried(nest, half, port):
    (kh, kw), (sh, sw) = nest.kernel, nest.stride
    extents = (nest.batch, nest.rows, nest.columns, nest.inputs, nest.outputs)
    side = max(nest.rows, nest.columns)
    step = 1 if nest.unrolled else 8
    sides = [min(2**i, side) for i in range(10) if 2**i < 2 * side]
    cuts = [[min(s * 2**i, e) for i in range(10) if s * 2**i < 2 * e] for s, e in
            ((1, nest.batch), (1, nest.inputs), (step, max(nest.outputs, step)))]  # fmt: skip
    limits = None
    for b, o, ic, oc in product(cuts[0], sides, cuts[1], cuts[2]):
        tile = (b, min(o, nest.rows), min(o, nest.columns), ic, min(oc, nest.outputs))
        _, rows, columns, ic, oc = tile
        counts = [ceil(e / t) for e, t in zip(extents, tile, strict=True)]
        pixels, lanes = b * rows * columns, 8 * 4
        window = (kh + (rows - 1) * sh) * (kw + (columns - 1) * sw) * b
        bits = [
            ceil(kh * kw * ic / lanes) * lanes * oc * 4,
            (pixels * kh * kw if nest.unrolled else window) * ic * 4,
            pixels * ceil(oc / 8) * 8 * 32,
        ]
        limits = limits or [max(h, t) for h, t in zip(half, bits, strict=True)]
        if any(t > h for t, h in zip(bits, limits, strict=True)):
            continue
        reduction = ceil(kh * kw * ic / lanes) if nest.unrolled else kh * kw * ceil(ic / lanes)
        compute = counts[0] * counts[1] * counts[2] * counts[3] * counts[4] * pixels * ceil(oc / 8) * reduction
        for order in permutations(range(5)):
            moved, held, stays = list(bits), list(bits), [True] * 3
            for loop in reversed(order):
                for operand, indexed in enumerate(({3, 4}, {0, 1, 2, 3}, {0, 1, 2, 4})):
                    if loop in indexed or not stays[operand]:
                        moved[operand] *= counts[loop]
                    stays[operand] = stays[operand] and moved[operand] <= limits[operand]
                    held[operand] = moved[operand] if stays[operand] else held[operand]
            hidden = ceil((sum(moved) + moved[2] - sum(held) - held[2]) / port)
            yield max(compute, hidden) + ceil(sum(held) / port) + ceil(held[2] / port)
