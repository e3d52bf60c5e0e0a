"""kill -9 at any moment, and the same command goes on: nothing told is lost, nothing is evaluated twice."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from haqsearch.spec import Policy

from .conftest import EVALUATIONS, trials
from .forks import Forked


def evaluated(folder: Path) -> int:
    """Evaluations in the journal of a run that is under way."""
    journal = folder / "study.journal"
    return journal.read_bytes().count(b'"evaluation"') if journal.exists() else 0


def kill_when(arguments: list[str], cwd: Path, reached: Callable[[], bool], delay: float) -> bool:
    """Start the command and kill it ``delay`` seconds after ``reached`` holds; whether it was still running then."""
    process = Forked(arguments, cwd)
    try:
        end = time.monotonic() + 120
        while process.poll() is None and not reached() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(delay)
        alive = process.poll() is None
    finally:
        process.kill()
        code = process.wait()
    assert code == (-signal.SIGKILL if alive else 0), process.err()
    return alive


def search_with_kills(finished, folder: Path, moments: list[tuple[str, int, float]]) -> None:
    """Kill a run at every (stage, evaluations, delay) of ``moments``, then let it end, and compare with the one that was not."""
    arguments = ["run", str(finished.recipe), "--out", str(folder)]
    killed = 0
    for stage, count, delay in moments:
        reached = {
            "prepare": lambda: True,
            "search": lambda count=count: evaluated(folder) >= count,
            "after": (folder / "trials.parquet").exists,
        }[stage]
        killed += kill_when(arguments, folder.parent, reached, delay)
        if (folder / "best.json").exists():
            Policy.from_json(json.loads((folder / "best.json").read_text()))
    assert killed >= len(moments) - 1, "the run ended before it could be killed: the test says nothing"
    last = Forked(arguments, folder.parent)
    assert last.wait() == 0, last.err()

    whole, pieces = trials(finished.folder), trials(folder)
    assert len(pieces) == EVALUATIONS == len({row["policy_digest"] for row in pieces})
    for name in ("number", "source", "policy_digest", "kl", "latency_s"):
        assert [row[name] for row in pieces] == [row[name] for row in whole], name
    summaries = [json.loads((f / "summary.json").read_text()) for f in (finished.folder, folder)]
    for name in ("policy_digest", "accuracy", "evaluations", "metrics"):
        assert summaries[0][name] == summaries[1][name]
    best = [json.loads((f / "best.json").read_text()) for f in (finished.folder, folder)]
    assert best[0] == best[1] and best[0]["evaluation"] in [row["number"] for row in whole]


def test_killed_twice(finished, tmp_path):
    chance = random.Random(0)
    counts = sorted(chance.sample(range(1, EVALUATIONS), 2))
    search_with_kills(finished, tmp_path / "run", [("search", count, chance.uniform(0, 0.2)) for count in counts])


@pytest.mark.slow
def test_killed_at_five_moments_from_the_start_to_the_report(finished, tmp_path):
    chance = random.Random(1)
    counts = sorted(chance.sample(range(1, EVALUATIONS), 3))
    moments = [
        ("prepare", 0, chance.uniform(2.5, 6)),
        *[("search", count, chance.uniform(0, 0.2)) for count in counts],
        ("after", 0, chance.uniform(0, 0.5)),
    ]
    search_with_kills(finished, tmp_path / "run", moments)
