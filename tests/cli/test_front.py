"""The front of a run: in its files, exported point by point, and asked what would be if the budget were another."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from haqsearch.spec import Policy, dominates, front, hypervolume

from .conftest import MY_NET, RECIPE, command, trials

EVALUATIONS = 24
TRADEOFF = f"""
model    = "my_net:build"
weights  = "my.safetensors"
data     = "my_net:load"
hardware = "bismo-edge"
objective = "kl"
tradeoff = ["latency_s"]
budget   = []
agent    = "nsga3"
weight_bits     = [2, 4, 8]
activation_bits = [2, 4, 8]
max_evaluations = {EVALUATIONS}
split = {{ calibrate = 32, search = 64, report = 64 }}
qat   = {{ candidates = 0 }}
"""


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def forgetful():
    """The user's module is imported here, and forgotten again."""
    yield
    sys.modules.pop("my_net", None)


@pytest.fixture(scope="module")
def traded(tmp_path_factory, my_weights):
    """A finished search for a front, in ``run``, with what it printed in ``printed``."""
    base = tmp_path_factory.mktemp("traded")
    (base / "my.toml").write_text(TRADEOFF)
    (base / "my_net.py").write_text(MY_NET)
    shutil.copy(my_weights, base)
    result = command("run", "my.toml", "--out", "run", cwd=base)
    assert result.code == 0, result.err
    (base / "printed").write_text(result.out)
    return base


def test_pareto_json_is_exactly_the_front_of_what_was_evaluated(traded):
    rows = trials(traded / "run")
    assert len(rows) == EVALUATIONS and {row["source"] for row in rows} == {"uniform", "nsga3"}
    points = [(row["kl"], row["latency_s"]) for row in rows]
    kept = {
        row["policy_digest"] for row, p in zip(rows, points, strict=True) if not any(dominates(o, p) for o in points)
    }
    found = read(traded / "run" / "pareto.json")
    assert {p["policy_digest"] for p in found["points"]} == {rows[i]["policy_digest"] for i in front(points)} <= kept
    assert [p["point"] for p in found["points"]] == list(range(1, len(found["points"]) + 1))
    assert found["metrics"] == ["latency_s"] and all(p["evaluated"] for p in found["points"])


def test_the_hypervolume_is_written_and_said(traded):
    rows, summary = trials(traded / "run"), read(traded / "run" / "summary.json")
    worst = max(row["kl"] for row in rows if row["source"] == "uniform")
    int8 = summary["int8_metrics"]["latency_s"]

    def level(kl: float) -> float:
        return math.log(max(kl, 1e-6) / 1e-6)

    points = [(level(row["kl"]), row["latency_s"]) for row in rows]
    share = hypervolume(points, (level(worst), int8)) / (level(worst) * int8)
    written = summary["tradeoff"]
    assert written["hypervolume"] == pytest.approx(share) and 0.05 < share < 1
    assert written["reference"] == {"kl": worst, "latency_s": int8} and written["metrics"] == ["latency_s"]
    assert written["front"] == len(read(traded / "run" / "pareto.json")["points"])
    assert summary["feasible"] is True and summary["budget"] == []
    printed = (traded / "printed").read_text()
    assert f"hypervolume {share:.4f}" in printed and "export --point K" in printed
    assert f"{written['front']} on the front, hypervolume {share:.4f}" in printed  # the last line of progress


@pytest.mark.parametrize("which", [1, -1])
def test_a_point_exported_as_scored_has_the_score_that_was_recorded(traded, call, which, tmp_path):
    from haqsearch.cli.assemble import Assembly
    from haqsearch.config import load_recipe
    from haqsearch.runtime import load_program

    points = read(traded / "run" / "pareto.json")["points"]
    point = points[which if which > 0 else len(points) - 1]
    result = call("export", "run", "--point", point["point"], "--as-scored", "--out", tmp_path / "p", cwd=traded)
    assert result.code == 0, result.err
    assert f"point {point['point']} of {len(points)}: policy {point['policy_digest']}" in result.out
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"model.safetensors", "model.onnx", "policy.json"}
    policy = Policy.from_json(read(tmp_path / "p" / "policy.json"))
    assert policy.digest == point["policy_digest"]
    assert read(tmp_path / "p" / "policy.json")["costs"] == point["metrics"]
    a = Assembly(load_recipe(traded / "my.toml"), traded, (), traded / "run")
    program = load_program(tmp_path / "p" / "model.safetensors")
    scores = a.evaluator.score(program, "search")
    assert (scores.kl, scores.accuracy, scores.loss) == (point["kl"], point["accuracy"], point["loss"])
    report = a.evaluator.score(program, "report")
    assert f"report split: accuracy {report.accuracy:.2%}, loss {report.loss:.4f}" in result.out


def test_the_winners_point_gives_the_winners_files(finished, call, tmp_path):
    """Finished as the winner was: fine-tuned. The very same program, though nothing of the run is copied."""
    folder = finished.copy(tmp_path / "run")
    shutil.rmtree(folder / "qat")  # it is fine-tuned again
    digest = read(folder / "summary.json")["policy_digest"]
    points = {p["policy_digest"]: p["point"] for p in read(folder / "pareto.json")["points"]}
    result = call("export", "run", "--point", points[digest], cwd=tmp_path)
    assert result.code == 0, result.err
    out = folder / f"point-{points[digest]}"
    assert (out / "policy.json").read_bytes() == (folder / "policy.json").read_bytes()
    ours, theirs = (_content(place / "model.safetensors") for place in (out, folder))
    assert ours == theirs
    assert f"accuracy {read(folder / 'summary.json')['accuracy']:.2%}" in result.out


def _content(path: Path) -> tuple[dict, dict]:
    """Metadata, whose order in the file is any, and tensors."""
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}


def what_if(call, base: Path, *arguments):
    result = call("what-if", "run", *arguments, "--json", cwd=base)
    return result, json.loads(result.out) if result.out else None


def test_the_old_budget_gives_the_old_best(finished, call, tmp_path):
    finished.copy(tmp_path / "run", ["summary.json", "trials.parquet", "pareto.json"])
    result, found = what_if(call, tmp_path, "latency_s <= 0.6 * int8", "size_bytes <= 36 kB")
    rows = trials(finished.folder)
    best = min(rows, key=lambda row: (row["kl"], row["number"]))
    assert result.code == 0, result.err
    assert (found["evaluated"]["policy_digest"], found["evaluated"]["trial"]) == (best["policy_digest"], best["number"])
    assert found["evaluated"]["point"] == 1 and found["nearest"] is None
    assert found["evaluated"]["fidelity"] == "ptq" and found["predicted"] is None  # ddpg measures no sensitivities


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 1.0])
def test_what_if_answers_the_best_of_all_trials_inside(traded, call, share):
    rows, int8 = trials(traded / "run"), read(traded / "run" / "summary.json")["int8_metrics"]
    inside = [row for row in rows if row["latency_s"] <= share * int8["latency_s"]]
    result, found = what_if(call, traded, f"latency_s <= {share} * int8")
    if inside:
        assert found["evaluated"]["policy_digest"] == min(inside, key=lambda r: (r["kl"], r["number"]))["policy_digest"]
        points = read(traded / "run" / "pareto.json")[
            "points"
        ]  # of a limit on what was traded the answer is on the front
        assert points[found["evaluated"]["point"] - 1]["policy_digest"] == found["evaluated"]["policy_digest"]
    else:
        assert result.code == 1 and found["evaluated"] is None
        assert found["nearest"]["metrics"]["latency_s"] == min(row["latency_s"] for row in rows)


def test_what_if_writes_the_answer_as_a_policy(traded, call, tmp_path):
    result = call("what-if", "run", "latency_s <= 0.6 * int8", "--out", tmp_path / "p.json", cwd=traded)
    assert result.code == 0 and "evaluated: trial" in result.out, result.err
    policy = Policy.from_json(read(tmp_path / "p.json"))
    assert policy.digest in result.out
    scored = call("evaluate", "my.toml", "--policy", tmp_path / "p.json", "--json", cwd=traded)
    assert json.loads(scored.out)["policy_digest"] == policy.digest


def test_with_a_sensitivity_table_the_optimum_is_predicted_and_marked(project, call):
    from itertools import product

    from haqsearch.cli.assemble import Assembly
    from haqsearch.config import load_recipe

    changes = ["--set", "agent=ilp", "--set", "max_evaluations=5"]
    assert call("run", "my.toml", "--out", "run", *changes, cwd=project).code == 0
    files = [project / "run" / "study.journal", *(project / "run" / "sensitivity").iterdir()]
    before = [file.read_bytes() for file in files]
    a = Assembly(load_recipe(project / "run" / "recipe.toml"), project, (), project / "run")
    table, int8 = a.sensitivity, a.meter.int8()["latency_s"]
    keys = list(product(*(range(len(v.candidates)) for v in a.space.variables)))
    for share in (0.5, 0.9):
        result, found = what_if(call, project, f"latency_s <= {share} * int8")
        inside = [k for k in keys if a.meter.costs(a.space.policy(k))["latency_s"] <= share * int8]
        assert 0 < len(inside) < len(keys)
        least = min(sum(loss[i] for loss, i in zip(table.losses(a.space), key, strict=True)) for key in inside)
        guess = found["predicted"]
        policy = next(a.space.policy(k) for k in inside if a.space.policy(k).digest == guess["policy_digest"])
        losses = zip(table.losses(a.space), a.space.indices(policy), strict=True)
        assert sum(loss[i] for loss, i in losses) == pytest.approx(least)
        assert guess["value"] == pytest.approx(table.predict(a.space, policy)) and guess["measure"] == "kl"
        rows = {row["policy_digest"]: row["number"] for row in trials(project / "run")}
        assert guess["trial"] == rows.get(policy.digest)
        assert result.code == (1 if found["evaluated"] is None else 0)
        assert "value" not in (found["evaluated"] or {}) and "score" not in guess, "never mixed up"
    assert [file.read_bytes() for file in files] == before, "nothing was evaluated"
    text = call("what-if", "run", "latency_s <= 0.9 * int8", cwd=project).out
    assert "evaluated: trial" in text and "predicted: kl" in text
    refused = call("what-if", "run", "latency_s <= 0.9 * int8", "peak_activation_bytes <= 0.9 * int8", cwd=project)
    assert "predicted: nothing" in refused.out and "not a sum over the layers" in refused.out


WRONG = {
    "unknown metric": (["what-if", "run", "latncy_s <= 3 ms"], ["'latncy_s'", "did you mean 'latency_s'"]),
    "unreachable": (["what-if", "run", "latency_s <= 1 ns"], ["cannot be met", "least reachable latency_s"]),
    "no such run": (["what-if", "nowhere", "latency_s <= 3 ms"], ["nowhere", "no such run folder"]),
    "not run yet": (["what-if", ".", "latency_s <= 3 ms"], ["summary.json", "missing", "go on"]),
    "no such point": (["export", "run", "--point", "999"], ["points 1 to", "no point 999"]),
    "another recipe": (["export", "run", "--point", "1", "--recipe", "other.toml"], ["other.toml", "not the recipe"]),
    "nowhere to": (["export", "run"], ["--out FILE", "--point K"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_end_with_one_line_that_mends(traded, call, case):
    (traded / "other.toml").write_text(TRADEOFF.replace("[2, 4, 8]", "[4, 8]"))
    arguments, words = WRONG[case]
    result = call(*arguments, cwd=traded)
    assert result.code == 2 and result.err.count("\n") == 1
    for word in words:
        assert word in result.err


def test_a_run_without_a_scored_trial_has_no_answer(traded, call, tmp_path):
    import pandas as pd

    shutil.copytree(traded / "run", tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / "trials.parquet")
    table[:0].to_parquet(tmp_path / "run" / "trials.parquet")
    result = call("what-if", "run", "latency_s <= 0.6 * int8", cwd=tmp_path)
    assert result.code == 2 and "no policy was scored" in result.err
    (tmp_path / "run" / "trials.parquet").unlink()
    result = call("what-if", "run", "latency_s <= 0.6 * int8", cwd=tmp_path)
    assert result.code == 2 and "trials.parquet: missing" in result.err


BAD_RECIPES = {
    "no such metric": ('tradeoff = ["latency"]', ["tradeoff", "'latency'", "did you mean 'latency_s'"]),
    "an agent of one objective": ('tradeoff = ["latency_s"]', ["'ddpg'", "these can:", "nsga3"]),
    "neither": ("tradeoff = []", ["budget", "at least 1 limit, or a trade-off"]),
    "rungs": ('tradeoff = ["latency_s"]\nladder = { rungs = [16] }', ["rungs", "tradeoff"]),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_trade_off_that_cannot_be_searched_is_refused_before_the_search(project, call, case):
    line, words = BAD_RECIPES[case]
    text = RECIPE.replace('budget   = ["latency_s <= 0.7 * int8"]', "budget = []\n" + line).replace('"tpe"', '"ddpg"')
    (project / "my.toml").write_text(text)
    result = call("run", "my.toml", "--out", "run", cwd=project)
    assert result.code == 2 and not (project / "run" / "study.journal").exists()
    for word in words:
        assert word in result.err
