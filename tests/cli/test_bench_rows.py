"""haqsearch bench kernels and evaluate. Figures are a machine's own; here it is that they are there, and belong together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from networks import INTEGER, inputs, random_policy, small
from typer.testing import CliRunner

from haqsearch.cli.bench.evaluate import fake_quantized, float32
from haqsearch.cli.bench.timing import Turns
from haqsearch.errors import RecipeError
from haqsearch.graph import run_float
from haqsearch.runtime import run_program

pytest.importorskip("haqsearch.kernels.native", reason="the native kernels are not built")
ROOT = Path(__file__).parents[2]
KEYS = {"case", "policy", "baseline", "threads", "ratio", "q1", "q3"}


def bench(*arguments: object):
    from haqsearch.cli.bench import group

    return CliRunner().invoke(group(), [str(a) for a in arguments])


def test_kernels_gives_rows_a_csv_and_a_summary(tmp_path):
    found = bench("kernels", "--only", "linear: 4096", "--threads", "1", "--repeats", "2", "--out", tmp_path, "--json")
    rows = json.loads(found.output)["rows"]
    assert [row["policy"] for row in rows] == ["w8a8", "w4a8", "w3a8", "w2a8", "w1a8"]
    assert all(row.keys() >= KEYS and row["baseline"] == "torch_int8" for row in rows)
    assert all(row["q1"] <= row["ratio"] <= row["q3"] for row in rows)
    (table,) = tmp_path.glob("kernels-*-torch*.csv")
    with table.open(encoding="utf-8") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == [row["policy"] for row in rows]
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert table.name in text
    assert "| linear (1) | w8a8 | 1 |" in text


def test_evaluate_compares_with_fake_quantization_with_float32_and_with_itself(tmp_path):
    recipe = tmp_path / "searches" / "digits.toml"  # a trained network is kept beside it
    recipe.parent.mkdir()
    recipe.write_text((ROOT / "searches" / "digits-bismo-edge.toml").read_text(encoding="utf-8"), encoding="utf-8")
    quick = ("--only", "w4a4", "--repeats", "1", "--set", "split.calibrate=96", "--set", "train.epochs=1")
    found = bench("evaluate", recipe, "--threads", "1,2", *quick, "--json")
    assert found.exception is None, found.exception
    rows = json.loads(found.output)["rows"]
    assert all(row.keys() >= KEYS for row in rows)
    assert [(row["baseline"], row["threads"]) for row in rows] == [
        ("fake_quant", 1), ("fake_quant_steps", 1), ("float32", 1),
        ("fake_quant", 2), ("fake_quant_steps", 2), ("float32", 2),
        ("unchanged", 1), ("one_thread", 2),
    ]  # fmt: skip


def test_turns_taken_up_again_are_the_turns_of_one_comparison():
    ours, theirs = (
        iter([9.0, *range(1, 9)]),
        iter([9.0, *(3.0 * n for n in range(1, 9))]),
    )  # the first call of each is not counted
    turns = Turns(lambda: next(ours), lambda: next(theirs))
    for repeats in (1, 2, 5):
        turns.take(repeats)
    assert turns.figures() == {"ratio": 3.0, "q1": 3.0, "q3": 3.0, "ours_s": 4.5, "baseline_s": 13.5}
    order = []
    turns = Turns(lambda: order.append("ours") or 1.0, lambda: order.append("theirs") or 1.0)
    turns.take(1)
    turns.take(2)
    assert order[2:] == ["theirs", "ours", "ours", "theirs", "theirs", "ours"], "whichever comes first changes"


@pytest.mark.parametrize("name", INTEGER)
def test_the_baselines_compute_the_same_network(name):
    """A comparison with something else would be worth nothing. Fake quantization rounds sums of floats: not the last code."""
    ready, x = small(name), inputs(name, 16, 7)
    assert torch.allclose(float32(ready.graph)(x), run_float(ready.graph, x), atol=1e-4)
    program = ready.lower(random_policy(ready, 7))
    real = run_program(program, x)
    for in_steps in (False, True):
        simulated = fake_quantized(program, in_steps)(x)
        assert (simulated - real).norm() <= 0.02 * real.norm() + 2 * program.output_info.scale


def test_what_cannot_be_measured_is_refused():
    for arguments, sentence in (
        (("kernels", "--threads", "0"), "give numbers of threads"),
        (("kernels", "--isa", "sse9"), "torch's engines can be kept to avx2, avx512"),
    ):
        error = bench(*arguments).exception
        assert isinstance(error, RecipeError)
        assert sentence in str(error)


def test_agreement_counts_what_differs(tmp_path):
    recipe = tmp_path / "searches" / "digits.toml"
    recipe.parent.mkdir()
    recipe.write_text((ROOT / "searches" / "digits-bismo-edge.toml").read_text(encoding="utf-8"), encoding="utf-8")
    quick = (
        "--images",
        "60",
        "--set",
        "split.calibrate=96",
        "--set",
        "train.epochs=1",
        "--out",
        tmp_path / "out",
        "--json",
    )
    rows = json.loads(bench("agreement", recipe, *quick).output)["rows"]
    assert [row["policy"] for row in rows] == ["w8a8", "w4a4", "w3a5", "mixed"]
    assert all(row["images"] == 60 and row["outputs"] == 600 for row in rows)
    assert not any(row["native_differ"] or row["onnx_argmax_differ"] for row in rows)
    assert "| digits_cnn | w3a5 | 60 | 600 | 0 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
