"""haqsearch bench optimum and bits: what their files say is what every policy, scored, says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from haqsearch.spec import Policy

from .conftest import DIGITS

SMALL = (
    DIGITS.replace(
        '"latency_s <= 0.6 * int8", "size_bytes <= 36 kB"', '"size_bytes <= 0.5 * int8", "bops <= 0.4 * int8"'
    )
    .replace("weight_bits     = [2, 4, 6, 8]", "weight_bits = [2, 4, 8]")
    .replace("activation_bits = [4, 6, 8]", "activation_bits = [3, 6]")
)
FREE = ("conv1.conv", "conv2.conv", "down.conv")
LAYERS = ("stem.conv", *(f"block{i}.{part}.conv" for i in (1, 2) for part in ("expand", "depthwise", "project")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    fixed = ", ".join(f'"{name}" = "w4a4"' for name in (*LAYERS, "classifier"))
    (folder / "small.toml").write_text(SMALL.replace("split =", f"fixed = {{ {fixed} }}\nsplit ="))
    (folder / "large.toml").write_text(DIGITS + '[ptq]\npreset = "accurate"\n')
    return folder


def test_the_best_of_all_is_found_and_said_to_be(base, call):
    result = call("bench", "optimum", "small.toml", "--agent", "funnel", "--agent", "random", "--seeds", "2",
                  "--evaluations", "40", "--out", "out", cwd=base)  # fmt: skip
    assert result.code == 0, result.err
    found = json.loads((base / "out" / "optimum-small.json").read_text())
    assert found["space"] == 3**3 * 2**3
    assert 10 < found["feasible"] < found["space"]
    (file,) = (base / "out" / "runs" / "small").glob("table-*.json")
    table = json.loads(file.read_text())
    assert len(table) == found["feasible"]
    assert found["best"]["score"] == max(score for score, _ in table.values())
    assert found["exact"]["solver"] == pytest.approx(found["exact"]["enumerated"], rel=1e-9)
    for runs in found["agents"].values():
        for run in runs:
            assert run["better"] == sum(score > run["score"] for score, _ in table.values())
    assert all(run["better"] <= 1 for run in found["agents"]["funnel"])
    page = (base / "out" / "README.md").read_text()
    assert "Against the true optimum" in page and ": the same." in page
    again = call("bench", "optimum", "small.toml", "--agent", "random", "--seeds", "1", "--out", "out", cwd=base)
    assert again.code == 0 and "policies scored" not in again.err, "scored twice"


def test_a_space_too_large_to_enumerate_is_refused(base, call):
    result = call("bench", "optimum", "large.toml", "--out", "out", cwd=base)
    assert result.code == 2 and "fix more layers" in result.err


@pytest.mark.slow
def test_bits_keep_their_average_to_the_byte(base, call):
    result = call("bench", "bits", "large.toml", "--agent", "ilp", "--evaluations", "9", "--bits", "4", "--bops", "0.3",
                  "--finalists", "2", "--orders", "2", "--out", "out", cwd=base)  # fmt: skip
    assert result.code == 0, result.err
    rows = json.loads((base / "out" / "bits-large.json").read_text())["rows"]
    assert {row["contest"] for row in rows} == {"4 bits", "BOPs 0.3"}
    assert {row["policy"] for row in rows} >= {"ilp", "the same bits everywhere", "more bits in early layers"}
    for row in rows:
        assert row["over"] <= 0, "over its budget"
        if row["contest"] == "4 bits":
            assert row["average_bits"] <= 4 and row["finished_average_bits"] <= 4
    uniform = next(r for r in rows if r["policy"].startswith("the same") and r["contest"] == "4 bits")
    assert uniform["average_bits"] == 4 and uniform["over"] == 0, "four bits everywhere are four bits on average"
    page = (base / "out" / "README.md").read_text()
    assert "At the same average bits" in page
    assert all(f" {row['finished_kl']:.4f} |" in page for row in rows)
    for row in rows:
        first, other = row["finished_kls"]
        assert first == row["finished_kl"] and row["finished_accuracies"][0] == row["finished_accuracy"]
        low, high = sorted((first, other))
        assert f" {(first + other) / 2:.4f} ({low:.4f} .. {high:.4f}) |" in page
    assert any(len(set(row["finished_kls"])) > 1 for row in rows), "another order ends elsewhere"


@pytest.mark.slow
def test_policies_from_files_compete_where_their_average_is_asked(base, call, tmp_path):
    rows = json.loads((base / "out" / "bits-large.json").read_text())["rows"]
    layers = next(r for r in rows if r["policy"].startswith("more") and r["contest"] == "4 bits")["layers"]
    from haqsearch.search.records import read_policy

    policy: Policy = read_policy(layers)
    content = policy.to_json(tool="Elsewhere", average_bits=4.0, tool_accuracy=0.5)
    (tmp_path / "one.json").write_text(json.dumps(content))
    (tmp_path / "two.json").write_text(json.dumps({**content, "average_bits": 3.0}))
    result = call("bench", "bits", "large.toml", "--agent", "ilp", "--evaluations", "9", "--bits", "4", "--finalists", "2",
                  "--policies", str(tmp_path), "--out", "out", cwd=base)  # fmt: skip
    assert result.code == 0, result.err
    again = json.loads((base / "out" / "bits-large.json").read_text())["rows"]
    (mine,) = [row for row in again if row["policy"] == "Elsewhere's bits"]
    early = next(row for row in again if row["policy"].startswith("more"))
    assert (mine["accuracy"], mine["own_accuracy"]) == (early["accuracy"], 0.5)
    assert "Elsewhere's bits, quantized by itself | 50.00%" in (base / "out" / "README.md").read_text()
