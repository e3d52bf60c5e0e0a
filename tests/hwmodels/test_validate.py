from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import HardwareError
from hwmodels import validate
from hwmodels.literature import Row


def row(published: float, predicted: float, name: str = "mine", metric: str = "latency_s") -> Row:
    return Row(name, "board", f"{published}", metric, published, predicted, "somewhere")


def test_every_target_is_of_a_set_and_is_held():
    """Done-when 1 to 4: the figures that others published, and the errors they are allowed."""
    rows = validate.rows()
    summaries = validate.summaries(rows)
    seen = {(s.set, s.metric) for s in summaries}
    assert {(t.set, t.metric) for t in validate.TARGETS} <= seen
    missed = [f"{s.set} {s.device}: {text}" for s in summaries for text, held in s.targets.items() if not held]
    assert not missed
    assert sum(len(s.targets) for s in summaries) >= len(validate.TARGETS)
    assert {s.set for s in summaries} == set(validate.SETS) >= set(validate.FITTED)


def test_a_worse_model_misses_its_target(monkeypatch):
    monkeypatch.setattr(
        validate, "TARGETS", (validate.Target("mine", "mean", 0.02), validate.Target("mine", "max", 0.2))
    )
    (good,) = validate.summaries([row(1, 1.01), row(2, 1.99)])
    (bad,) = validate.summaries([row(1, 1.03), row(2, 2.0), row(3, 4.0)])
    assert good.held and good.targets == {"mean <= 2%": True, "max <= 20%": True}
    assert not bad.held and bad.targets == {"mean <= 2%": False, "max <= 20%": False}
    assert bad.worst == "3" and bad.max == pytest.approx(1 / 3) and bad.median == pytest.approx(0.03)


def test_sets_devices_and_metrics_are_told_apart():
    summaries = validate.summaries([row(1, 2), row(1, 1, metric="energy_j"), row(1, 1, "other")])
    assert [(s.set, s.metric, s.rows) for s in summaries] == [
        ("mine", "latency_s", 1),
        ("mine", "energy_j", 1),
        ("other", "latency_s", 1),
    ]
    assert summaries[0].rank_correlation is None


@given(st.lists(st.integers(0, 30), min_size=3, max_size=30), st.randoms())
@settings(max_examples=40, deadline=None)
def test_rank_correlation_is_pearsons_of_the_mean_ranks(values, random):
    other = [random.randint(0, 9) for _ in values]

    def ranks(x):
        return [sum(v < y for v in x) + (sum(v == y for v in x) - 1) / 2 for y in x]

    found = validate.spearman(values, other)
    if len(set(values)) < 2 or len(set(other)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(ranks(values), ranks(other))[0, 1])


def test_rows_of_a_set_or_a_device():
    assert {r.set for r in validate.rows("stm32h7_depthwise")} == {"stm32h7_depthwise"}
    assert {r.device for r in validate.rows("cortex-m7")} == {"cortex-m7"}
    with pytest.raises(HardwareError, match="no published figure of 'cortex-m8'; did you mean cortex-m7"):
        validate.rows("cortex-m8")


def test_the_files_have_every_row_and_every_set():
    rows = validate.rows("cortex-m7")
    records = list(csv.DictReader(io.StringIO(validate.as_csv(rows))))
    assert len(records) == len(rows)
    assert [float(r["error"]) for r in records] == pytest.approx([r.error for r in rows], abs=1e-5)
    text = validate.as_markdown(rows)
    assert all(f"| {name} |" in text for name in ("stm32h7_convolutions", "stm32h7_depthwise"))
    assert "EEESlab/mobilenet_v1_stm32_cmsis_nn" in text
