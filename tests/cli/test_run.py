from __future__ import annotations

import json
import time

import numpy as np
import pytest

from haqsearch.config import load_recipe
from haqsearch.spec import Policy, dominates

from .conftest import EVALUATIONS, trials
from .forks import Forked

FILES = {
    "recipe.toml", "study.journal", "trials.parquet", "pareto.json", "policy.json", "model.safetensors", "model.onnx",
    "summary.json", "environment.json", "report.html", "float.safetensors", "best.json",
}  # fmt: skip
KEYS = {
    "float_accuracy", "accuracy", "feasible", "metrics", "budget", "evaluations", "seconds", "policy_digest",
}  # fmt: skip


def read(path):
    return json.loads(path.read_text())


def test_every_file_of_a_run_is_there_and_nothing_half_written(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names >= FILES
    assert not [name for name in names if name.endswith(".tmp")]
    assert finished.result.err == ""
    assert "report.html" in finished.result.out and "met" in finished.result.out


def test_summary_is_complete(finished):
    summary = read(finished.folder / "summary.json")
    assert summary.keys() >= KEYS
    for name in ("float_accuracy", "accuracy", "int8_accuracy"):
        assert 0.5 < summary[name] <= 1, "an accuracy is a share; the digits are learned in three epochs"
    assert summary["feasible"] is True and summary["evaluations"] == EVALUATIONS
    assert [b["metric"] for b in summary["budget"]] == ["latency_s", "size_bytes"]
    for budget in summary["budget"]:
        assert budget["met"] is True and budget["value"] <= budget["limit"]
        assert budget["value"] == summary["metrics"][budget["metric"]]
    assert summary["budget"][0]["limit"] == pytest.approx(0.6 * summary["int8_metrics"]["latency_s"])
    assert set(summary["seconds"]) >= {"prepare", "search", "finish", "finish_baseline", "report"}
    assert all(0 < seconds < 300 for seconds in summary["seconds"].values())
    assert summary["splits"] == {"calibrate": 64, "search": 100, "report": 200}


def test_one_policy_everywhere(finished):
    import onnx
    from safetensors import safe_open

    folder = finished.folder
    digest = read(folder / "summary.json")["policy_digest"]
    content = read(folder / "policy.json")
    policy = Policy.from_json(content)
    assert policy.digest == content["digest"] == digest
    assert content["costs"] == read(folder / "summary.json")["metrics"]
    assert content["model_digest"] and content["weights_digest"] and content["hardware"]["name"] == "bismo-edge"
    assert digest in [row["policy_digest"] for row in trials(folder)]
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert metadata["haqsearch.policy_digest"] == digest
    with safe_open(str(folder / "model.safetensors"), framework="np") as file:
        assert file.metadata()["haqsearch.policy_digest"] == digest


def test_trials_are_the_evaluations_and_the_front_is_one(finished):
    rows = trials(finished.folder)
    assert len(rows) == EVALUATIONS == len({row["policy_digest"] for row in rows})
    assert {row["source"] for row in rows} == {"uniform", "ddpg"}
    assert all(row["feasible"] and row["violation"] == 0 and row["error"] == "" for row in rows)
    front = read(finished.folder / "pareto.json")
    assert front["metrics"] == ["latency_s", "size_bytes"] and front["objective"] == "kl"
    points = [(-p["score"], *(p["metrics"][m] for m in front["metrics"])) for p in front["points"]]
    assert points
    assert not any(dominates(a, b) for a in points for b in points if a is not b)
    of_trials = [(-row["score"], row["latency_s"], row["size_bytes"]) for row in rows]
    for point in of_trials:
        assert point in points or any(dominates(p, point) or p == point for p in points)
    assert {p["policy_digest"] for p in front["points"]} <= {row["policy_digest"] for row in rows}


def test_the_recipe_in_the_folder_is_the_recipe(finished):
    kept = load_recipe(finished.folder / "recipe.toml")
    assert kept == load_recipe(finished.recipe)


def test_onnx_runtime_says_what_the_program_says(finished):
    import onnxruntime
    import torch

    from haqsearch.cli.assemble import Assembly
    from haqsearch.runtime import load_program, run_program

    images, labels = Assembly(load_recipe(finished.recipe), finished.base, ()).splits.report
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(finished.folder / "model.onnx"), options)
    (theirs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    ours = run_program(load_program(finished.folder / "model.safetensors"), images)
    assert np.array_equal(theirs, ours.numpy())
    accuracy = float((torch.from_numpy(theirs).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(read(finished.folder / "summary.json")["accuracy"])


def test_the_same_command_again_evaluates_nothing(finished, call, tmp_path):
    folder = finished.copy(tmp_path / "renamed")
    journal = (folder / "study.journal").read_bytes()
    before = read(folder / "summary.json")
    start = time.monotonic()
    result = call("run", finished.recipe, "--out", folder, cwd=tmp_path)
    assert result.code == 0, result.err
    assert (folder / "study.journal").read_bytes() == journal
    assert "training the float network" not in result.out and "fine-tuning" not in result.out
    after = read(folder / "summary.json")
    for name in ("policy_digest", "accuracy", "evaluations", "metrics"):
        assert after[name] == before[name]
    assert time.monotonic() - start < 60


def test_more_evaluations_go_on_and_another_recipe_does_not(finished, call, tmp_path):
    folder = finished.copy(tmp_path / "more")
    result = call("run", finished.recipe, "--out", folder, "--set", f"max_evaluations={EVALUATIONS + 3}", cwd=tmp_path)
    assert result.code == 0, result.err
    old, new = trials(finished.folder), trials(folder)
    assert len(new) == EVALUATIONS + 3
    assert [row["policy_digest"] for row in new[:EVALUATIONS]] == [row["policy_digest"] for row in old]

    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}
    for change in ("seed=1", "train.epochs=1", 'budget=["latency_s <= 0.7 * int8"]'):
        result = call("run", finished.recipe, "--out", folder, "--set", change, cwd=tmp_path)
        assert result.code == 2
        assert "another recipe" in result.err and "--out" in result.err and change.partition("=")[0] in result.err
        assert result.err.count("\n") == 1
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_evaluate_what_this_process_does(finished, tmp_path, workers):
    """In what order policies are told to the agent differs with the number of workers, and so does what it proposes."""
    folder = finished.copy(tmp_path / "parallel", only=["float.safetensors"])
    untrained = ["--set", "qat.candidates=0", "--set", "qat.baseline=false"]
    run = Forked(["run", finished.recipe, "--out", folder, "--workers", workers, *untrained], tmp_path)
    assert run.wait() == 0, run.err()
    serial, parallel = trials(finished.folder), trials(folder)
    assert len(parallel) == EVALUATIONS == len({row["policy_digest"] for row in parallel})
    scores = {row["policy_digest"]: row["kl"] for row in serial}
    shared = [row for row in parallel if row["policy_digest"] in scores]
    assert len(shared) > sum(row["source"] == "uniform" for row in serial)
    for row in shared:
        assert row["kl"] == pytest.approx(scores[row["policy_digest"]], rel=1e-5, abs=1e-7)
