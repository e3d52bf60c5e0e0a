from __future__ import annotations

import random

import numpy as np
import pytest

from haqsearch.report.figures import front_line
from haqsearch.report.records import Trial, mean_widths
from haqsearch.report.style import label
from haqsearch.report.units import decimal, duration, exact, finite, human, percent, points, wilson
from haqsearch.spec import OBJECTIVES, dominates

MINUS = "\u2212"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("latency_s", 0.00123, "1.23 ms"),
        ("latency_s", 2.5, "2.50 s"),
        ("energy_j", 3.1e-6, "3.10 µJ"),
        ("energy_j", 3e-12, "0.00300 nJ"),
        ("size_bytes", 140_000, "140 kB"),
        ("size_bytes", 999.0, "999 B"),
        ("size_bytes", 0.0, "0 B"),
        ("bops", 1.2e9, "1.20 G"),
        ("unheard_of", 12.5, "12.5"),
    ],
)
def test_human(metric: str, value: float, text: str) -> None:
    assert human(metric, value) == text


def test_small_texts() -> None:
    assert exact("size_bytes", 1234.0) == "1234 B"
    assert exact("latency_s", 0.1) == "0.1 s"
    assert percent(0.91424) == "91.42 %"
    assert points(-0.0025) == f"{MINUS}0.25 pts"
    assert points(0.0) == "±0.00 pts"
    assert [duration(s) for s in (0.045, 3.2, 59.99, 252, 4325)] == [
        "45 ms",
        "3.2 s",
        "1 min 0 s",
        "4 min 12 s",
        "1 h 12 min",
    ]
    assert decimal(1234.5) == "1,234"
    assert human("latency_s", None) == percent(None) == points(None) == duration(None) == "\u2013"


@pytest.mark.parametrize("value", [None, "x", "1", float("nan"), float("inf"), np.float64("nan"), [1]])
def test_what_is_no_number_is_none(value: object) -> None:
    assert finite(value) is None


def test_wilson_interval() -> None:
    low, high = wilson(0.9142, 10_000) or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.9086, 0.9195)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(None, 10) is wilson(0.5, 0) is None


def test_label_shortens_in_the_middle_and_escapes() -> None:
    assert label("layer3.2.conv2", 26) == "layer3.2.conv2"
    assert label("features.17.conv.0.depthwise", 12) == "featu…thwise"
    assert label("<b>&\n x") == "&lt;b&gt;&amp; x"


def test_mean_widths_leave_float_layers_out() -> None:
    assert mean_widths(("w4a8", "w2a4", "float32", "int6/uint6")) == "mean w4.0 a6.0"
    assert mean_widths(("float32",)) == "float32"


@pytest.mark.parametrize("name", ["accuracy", "kl"])
def test_front_line_is_the_front(name: str) -> None:
    rng = random.Random(3)
    objective = OBJECTIVES[name]
    trials = [
        Trial(
            i,
            "agent",
            str(i),
            True,
            0.0,
            rng.randint(0, 20) / 20,
            None,
            rng.randint(1, 20) / 20,
            None,
            {"bops": rng.randint(1, 30)},
            (),
        )
        for i in range(200)
    ]
    line = front_line(trials, "bops", objective)
    point = {t.number: (t.metrics["bops"] or 0.0, -objective.sign * getattr(t, name)) for t in trials}
    assert [point[t.number][0] for t in line] == sorted(point[t.number][0] for t in line)
    for trial in trials:
        beaten = any(
            dominates(point[t.number], point[trial.number]) or point[t.number] == point[trial.number] for t in line
        )
        assert beaten
    assert not any(dominates(p, point[t.number]) for t in line for p in point.values())
