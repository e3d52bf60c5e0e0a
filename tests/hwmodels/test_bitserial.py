from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
from device_shapes import GOLDEN, layers, mobilenet_v1, mobilenet_v2, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.spec import Policy
from haqsearch.spec.policy import FLOAT_CHOICE

EDGE, CLOUD = hwmodels.load("bismo-edge"), hwmodels.load("bismo-cloud")
WIDTHS = range(1, 9)


def cycles(device, layer, w, a, batch):
    return device.cost(layer, wa(w, a), batch).values["latency_s"] * device.profile.clock.frequency_hz


def test_network_sums_of_haqs_table_to_the_cycle():
    model = mobilenet_v2()
    with (GOLDEN / "haq_bismo_cloud_sums.csv").open() as file:
        published = {(int(r["w_bits"]), int(r["a_bits"])): int(r["cycles"]) for r in csv.DictReader(file)}
    assert len(published) == 64
    for (w, a), total in published.items():
        assert sum(cycles(CLOUD, layer, w, a, 16) for layer in model) == pytest.approx(total, rel=1e-9), (w, a)


def test_every_cell_of_haqs_table_to_the_cycle(shared_file):
    model = mobilenet_v2()
    errors = []
    with shared_file("validation/haq_mbv2_bismo_cloud_b16.csv").open() as file:
        for row in csv.DictReader(file):
            layer = model[f"l{row['layer_idx']}"]
            predicted = cycles(CLOUD, layer, int(row["w_bits"]), int(row["a_bits"]), int(row["batch"]))
            errors.append(abs(predicted / float(row["cycles"]) - 1))
    print(f"median {np.median(errors):.2g}, p95 {np.quantile(errors, 0.95):.2g}, max {max(errors):.2g}")
    assert len(errors) == 53 * 64
    assert max(errors) < 1e-9


# Milliseconds of HAQ's tables of uniform policies (1811.08886) at W = A = 4, 5, 6, 8. The edge profile's word size,
# port split and depthwise packing were chosen by these eight numbers; MobileNetV1 on the cloud device was not.
@pytest.mark.parametrize(
    ("device", "model", "published", "tolerance"),
    [
        (EDGE, mobilenet_v1(), (45.45, 57.75, 70.67, 96.20), 0.04),
        (EDGE, mobilenet_v2(), (52.15, 66.94, 82.49, 115.84), 0.04),
        (CLOUD, mobilenet_v1(), (57.49, 77.52, 99.86, 151.09), 0.025),
        (CLOUD, mobilenet_v2(), (74.46, 99.43, 127.07, 189.82), 0.01),
    ],
    ids=["v1-edge", "v2-edge", "v1-cloud", "v2-cloud"],
)
def test_published_latencies(device, model, published, tolerance):
    meter = hwmodels.Meter(device, model)
    for bits, milliseconds in zip((4, 5, 6, 8), published, strict=True):
        latency = meter.costs(Policy.uniform(model, wa(bits, bits)))["latency_s"]
        assert latency * 1e3 == pytest.approx(milliseconds, rel=tolerance)


@given(layer=layers(), batch=st.sampled_from([1, 16]), device=st.sampled_from([EDGE, CLOUD]))
@settings(max_examples=60, deadline=None)
def test_fewer_bits_never_cost_more(layer, batch, device):
    cost = {
        metric: np.array([[device.cost(layer, wa(w, a), batch).values[metric] for a in WIDTHS] for w in WIDTHS])
        for metric in device.metrics
    }
    for metric, axis in product(cost, (0, 1)):
        assert (np.diff(cost[metric], axis=axis) >= 0).all(), (metric, axis)


@given(layer=layers(), w=st.integers(1, 8), a=st.integers(1, 8), device=st.sampled_from([EDGE, CLOUD]))
@settings(max_examples=100, deadline=None)
def test_no_faster_than_the_peak_of_the_array(layer, w, a, device):
    grid = device.profile.compute
    assert cycles(device, layer, w, a, 1) >= layer.macs * w * a / (grid.rows * grid.columns * grid.word_bits)


def test_peak_of_the_pynq_build():
    # 8 x 256 x 8 at 200 MHz: 6.5 tera binary operations per second (EECS-NTNU/bismo, doc/platforms.md).
    grid, clock = EDGE.profile.compute, EDGE.profile.clock
    assert 2 * grid.rows * grid.columns * grid.word_bits * clock.frequency_hz == pytest.approx(6.5e12, rel=0.01)


def test_float_is_charged_as_32_bits():
    layer = mobilenet_v2().layers[6]
    eight, float32 = (EDGE.cost(layer, choice, 1) for choice in (wa(8, 8), FLOAT_CHOICE))
    assert eight.bound == float32.bound == "compute"
    assert float32.values["latency_s"] == pytest.approx(16 * eight.values["latency_s"], rel=0.1)
