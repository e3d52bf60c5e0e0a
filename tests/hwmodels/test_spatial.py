from __future__ import annotations

import csv

import numpy as np
import pytest
from device_shapes import conv, layers, linear, mobilenet_v1, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.spec import Policy
from haqsearch.spec.policy import FLOAT_CHOICE

DEVICE = hwmodels.load("bitfusion")


def test_the_simulators_cycles(shared_file):
    """Closed form against the simulator's searched tilings; the simulator has no depthwise operator and runs such a
    layer as one-channel convolutions, and so does this test."""
    cycles, energy = [], []
    with shared_file("validation/bitfusion_conf_ini.csv").open() as file:
        for row in csv.DictReader(file):
            c, n, k, out, stride, batch = (
                int(row[key]) for key in ("in_ch", "out_ch", "kernel", "out_hw", "stride", "batch")
            )
            first = {"inputs": ()} if row["im2col"] == "True" else {}
            layer = linear("fc", c, n) if row["layer"].startswith("fc") else conv("conv", c, n, k, out, stride, **first)
            cost = DEVICE.cost(layer, wa(int(row["w_bits"]), int(row["a_bits"])), batch).values
            copies = int(row["dw_channels"]) or 1
            cycles.append(copies * cost["latency_s"] * 500e6 / float(row["cycles"]) - 1)
            energy.append(copies * cost["energy_j"] * 1e6 / float(row["energy_uJ"]) - 1)
    error = np.abs(cycles)
    print(f"cycles: MAPE {error.mean():.2%}, p95 {np.quantile(error, 0.95):.1%}, max {error.max():.1%}")
    print(f"energy: MAPE {np.abs(energy).mean():.1%}, median {np.median(energy):+.1%}")
    assert len(cycles) == 672
    assert error.mean() < 0.02
    assert np.quantile(error, 0.95) < 0.10
    assert max(cycles) < 0.01  # a closed form cannot be slower than a tiling that exists
    # The simulator picks the fastest tiling even if it refetches outputs: its energy is above the traffic needed.
    assert np.abs(energy).mean() < 0.35
    assert max(energy) < 0.01


def test_haqs_mobilenet_v1():
    """HAQ (1811.08886) on BitFusion: uniform policies with the first and the last layer at 8 bits."""
    model = mobilenet_v1()
    pinned = {"conv0": wa(8, 8), "fc": wa(8, 8)}
    meter = hwmodels.Meter(DEVICE, model)
    for w, a, milliseconds in ((4, 4, 7.86), (4, 6, 11.10), (6, 6, 19.99), (8, 8, 20.08)):
        latency = meter.costs(Policy.uniform(model, wa(w, a), pinned))["latency_s"]
        assert latency * 1e3 == pytest.approx(milliseconds, rel=0.07), (w, a)


def test_peak_throughput():
    # 16 x 32 units at 500 MHz do 256 GMAC/s at 8 x 8 and four times that at 4 x 4; this array has 64 of 512 units.
    layer = conv("big", 1024, 1024, 3, 32)
    for bits, macs_per_cycle in ((8, 64), (4, 256), (2, 1024)):
        cost = DEVICE.cost(layer, wa(bits, bits), 16)
        assert cost.bound == "compute"
        assert 16 * layer.macs / (cost.values["latency_s"] * 500e6) == pytest.approx(macs_per_cycle)


@given(layer=layers(), w=st.integers(1, 8), a=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_a_width_that_is_missing_runs_at_the_next_wider_one(layer, w, a):
    wider = {1: 2, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
    narrow, native = DEVICE.cost(layer, wa(w, a), 1), DEVICE.cost(layer, wa(wider[w], wider[a]), 1)
    assert narrow.values["latency_s"] <= native.values["latency_s"]
    if native.bound == narrow.bound == "compute":
        assert narrow.values["latency_s"] == native.values["latency_s"]


def test_only_widths_up_to_the_widest_native_one():
    layer = linear("fc", 10, 10)
    assert DEVICE.supports(layer, wa(8, 8))
    assert not DEVICE.supports(layer, wa(9, 8))
    assert not DEVICE.supports(layer, wa(8, 16))


def test_float_takes_sixteen_passes():
    layer = conv("big", 1024, 1024, 3, 32)
    eight, float32 = (DEVICE.cost(layer, choice, 16).values["latency_s"] for choice in (wa(8, 8), FLOAT_CHOICE))
    assert float32 == pytest.approx(16 * eight)


def test_grouped_convolution_is_its_groups_one_by_one():
    grouped, one = conv("grouped", 64, 64, 3, 16, groups=4), conv("one", 16, 16, 3, 16)
    for device in map(hwmodels.load, hwmodels.list_profiles()):
        whole, part = (device.cost(layer, wa(4, 4), 1).values for layer in (grouped, one))
        assert whole["latency_s"] == pytest.approx(4 * part["latency_s"])
        assert whole["energy_j"] == pytest.approx(4 * part["energy_j"])
