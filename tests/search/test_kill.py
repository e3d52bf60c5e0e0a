"""``kill -9`` at random moments, and continue: the search is the one that was never killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from haqsearch.search.records import Record, best_of, read_records
from haqsearch.search.storage import JOURNAL, load_study
from haqsearch.spec import Policy

EVALUATIONS, PAUSE, KILLS = 18, 0.02, 3


def start(folder: Path, agent: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    worker = Path(__file__).with_name("workers.py")
    return subprocess.Popen([sys.executable, worker, folder, agent, str(EVALUATIONS), str(PAUSE)])


def outcome(folder: Path) -> list[Record]:
    return read_records(load_study(folder, "kill"))


def best_on_disk(folder: Path) -> float | None:
    """Score in ``best.json``, which has to be a whole policy file at any moment; None before the first."""
    path = folder / "best.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    assert Policy.from_json(content).digest == content["digest"]
    return content["score"]


@pytest.mark.parametrize("agent", ["random", "tpe+ladder"])
def test_a_killed_search_ends_as_an_uninterrupted_one(tmp_path, agent):
    assert start(tmp_path / "whole", agent).wait() == 0
    whole = outcome(tmp_path / "whole")

    folder = tmp_path / "killed"
    log = folder / "evaluated.log"
    moments = random.Random(agent)
    for kill in range(1, KILLS + 1):
        process = start(folder, agent)
        # Die somewhere within the evaluations after this one: in the middle of any of ask, evaluate, write and tell.
        target = kill * EVALUATIONS // (KILLS + 2)
        while process.poll() is None and (not log.exists() or len(log.read_text().split()) < target):
            best_on_disk(folder)
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 3 * PAUSE))
        assert process.poll() is None, "it ended before it could be killed: the test would show nothing"
        process.kill()
        process.wait()
        best_on_disk(folder)
    assert start(folder, agent).wait() == 0

    records = outcome(folder)
    assert sum(r.evaluation.ok for r in records) == EVALUATIONS
    assert any(r.pruned for r in records) == agent.endswith("ladder")
    assert best_on_disk(folder) == best_of(records).score
    digests = [r.policy.digest for r in records]
    assert len(set(digests)) == len(digests), "a policy was completed twice"
    assert digests == [r.policy.digest for r in whole]
    assert [r.score for r in records] == [r.score for r in whole]
    assert [r.evaluation.fidelity for r in records] == [r.evaluation.fidelity for r in whole]
    again = Counter(log.read_text().split())
    assert {text.partition(":")[0] for text in again} == set(digests)
    assert sum(again.values()) - len(again) <= KILLS, "more was evaluated again than what was under way at a kill"


def test_a_second_process_is_turned_away_and_harms_nothing(tmp_path):
    first = start(tmp_path, "random")
    while not (tmp_path / JOURNAL).exists():
        time.sleep(0.01)
    worker = Path(__file__).with_name("workers.py")
    second = subprocess.run(
        [sys.executable, worker, tmp_path, "random", "3", "0"], capture_output=True, text=True, check=False
    )
    assert second.returncode != 0
    assert f"another process (pid {first.pid}) is searching here" in second.stderr
    assert first.wait() == 0
    assert len(outcome(tmp_path)) == EVALUATIONS
