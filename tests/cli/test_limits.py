"""Time budgets, patience and the ladder as a recipe asks for them."""

from __future__ import annotations

import json

from .conftest import trials


def read(path):
    return json.loads(path.read_text())


def test_a_search_ended_by_time_goes_on_when_there_is_more(project, call):
    whole = call("run", "my.toml", "--out", "whole", cwd=project)
    assert whole.code == 0, whole.err
    first = call("run", "my.toml", "--out", "out", "--set", "max_time=0.001 s", cwd=project)
    assert first.code == 0, first.err
    assert "search ended: the time is up after 1 evaluations" in first.out
    summary = read(project / "out" / "summary.json")
    assert summary["ended"]["by"] == "max_time"
    assert summary["evaluations"] == 1
    best = read(project / "out" / "best.json")
    assert best["digest"] == summary["policy_digest"]
    scored = call("evaluate", "my.toml", "--policy", "out/best.json", "--json", cwd=project)
    assert json.loads(scored.out)["policy_digest"] == best["digest"]
    # Seconds are added up over restarts: with those of the first run alone the budget is spent.
    again = call("run", "my.toml", "--out", "out", "--set", "max_time=0.002 s", cwd=project)
    assert "after 1 evaluations" in again.out
    more = call("run", "my.toml", "--out", "out", "--set", "max_time=10 min", cwd=project)
    assert more.code == 0, more.err
    assert read(project / "out" / "summary.json")["ended"]["by"] == "max_evaluations"
    assert [r["policy_digest"] for r in trials(project / "out")] == [
        r["policy_digest"] for r in trials(project / "whole")
    ]
    assert read(project / "out" / "best.json") == read(project / "whole" / "best.json")


def test_a_ladder_is_shown_recorded_and_reported(project, call):
    keys = (
        "max_evaluations=24",
        "patience=20",
        "ladder.rungs=[32]",
        "ladder.trial_run=4",
        "ladder.least_correlation=-1",
    )
    result = call("run", "my.toml", "--out", "out", *[part for key in keys for part in ("--set", key)], cwd=project)
    assert result.code == 0, result.err
    summary = read(project / "out" / "summary.json")
    first, last = summary["ladder"]["rungs"]
    assert first["scored"] == summary["evaluations"]
    assert last["scored"] == first["scored"] - first["pruned"]
    assert first["pruned"] == summary["pruned_evaluations"]
    assert f"ladder: 32 samples: {first['scored']} scored" in result.out
    assert "rung of 32 samples" in result.out
    assert "Rank correlation" in (project / "out" / "report.html").read_text()
    rows = trials(project / "out")
    assert [r["fidelity"] for r in rows].count("ptq:32") == first["pruned"]
    other = call("run", "my.toml", "--out", "out", cwd=project)
    assert other.code == 2
    assert "ladder.rungs was [32], is []" in other.err
