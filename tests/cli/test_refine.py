"""The second search: from the best of the first, every policy rounded in network order; killed, it goes on."""

from __future__ import annotations

import itertools
import json
import signal
import time

import pyarrow.parquet as parquet
import pytest

from haqsearch.cli.assemble import Assembly
from haqsearch.config import load_recipe
from haqsearch.errors import RecipeError, SearchError
from haqsearch.search.records import read_records
from haqsearch.search.refine import DIFFERENT, LEADERS, leading, refined
from haqsearch.search.storage import load_study

from .forks import Forked

SET = ("--set", "ptq.preset=accurate", "--set", "ptq.refine=8")


def rows(path):
    return sorted(parquet.read_table(path).to_pylist(), key=lambda row: row["number"])


def refinements(folder):
    """Policies scored in network order, in the journal of a run that is under way."""
    journal = folder / "study.journal"
    return journal.read_bytes().count(b'"in_order"') if journal.exists() else 0


def run(folder):
    process = Forked(["run", "my.toml", "--out", str(folder), *SET], folder.parent)
    assert process.wait() == 0, process.err()


def test_a_run_refines_from_its_best_policies_and_finishes_what_is_best_there(project):
    folder = project / "run"
    run(folder)
    first, second = rows(folder / "trials.parquet"), rows(folder / "refined.parquet")
    assert len(second) == 8 == len({row["policy_digest"] for row in second})
    assert {row["fidelity"] for row in second} == {"in_order"} and {row["fidelity"] for row in first} == {"ptq"}
    records = read_records(load_study(folder, "search"))
    begun = {row["policy_digest"] for row in second if row["source"] in {"warm_start", "uniform"}}
    leaders = refined(Assembly(load_recipe(project / "my.toml"), project, ()).problem, records)[0].warm_starts
    assert leaders[0] == leading(records)[0].policy and 1 <= len(leaders) <= LEADERS
    assert {policy.digest for policy in leaders} <= begun
    for one, other in itertools.combinations(leaders, 2):
        assert sum(one[name] != other[name] for name in one) >= DIFFERENT
    summary = json.loads((folder / "summary.json").read_text())
    best = max((row for row in second if row["feasible"]), key=lambda row: row["score"])
    assert summary["refined"] == {"evaluations": 8} and summary["evaluations"] == len(first)
    rounded = [c["policy_digest"] for c in summary["finish"] if (c["source"], c["fidelity"]) == ("search", "ptq")]
    assert best["policy_digest"] == rounded[0] and len(rounded) == 4, "the finalists, best first"
    assert summary["seconds"]["refine"] > 0 and summary["feasible"]


def test_killed_while_it_refines_a_run_ends_as_one_that_was_not(project):
    whole, pieces = project / "whole", project / "pieces"
    process = Forked(["run", "my.toml", "--out", str(pieces), *SET], project)
    try:
        end = time.monotonic() + 120
        while process.poll() is None and refinements(pieces) < 3 and time.monotonic() < end:
            time.sleep(0.005)
        alive = process.poll() is None
    finally:
        process.kill()
        code = process.wait()
    assert alive and code == -signal.SIGKILL, "the run ended before it could be killed: the test says nothing"
    run(pieces)
    run(whole)
    columns = ("policy_digest", "score", "source")
    ended, uninterrupted = (
        [[row[name] for name in columns] for row in rows(folder / "refined.parquet")] for folder in (pieces, whole)
    )
    assert ended == uninterrupted


def test_a_score_in_network_order_is_that_of_the_weights_rounded_so(project):
    a = Assembly(load_recipe(project / "my.toml", ["ptq.preset=accurate"]), project, ())
    policy = a.space.policy([0] * len(a.space.variables))
    found = a.evaluator.evaluate_in_order(policy)
    program = a.prepared.in_order(policy, a.splits.calibrate[0], quick=True).lower(policy)
    scores = a.evaluator.score(program, "search")
    assert found.ok and found.fidelity == "in_order"
    assert (found.logit_mse, found.kl, found.accuracy) == (scores.logit_mse, scores.kl, scores.accuracy)
    assert found.logit_mse != a.evaluator.evaluate(policy).logit_mse


def test_refining_wants_a_best_policy(project):
    a = Assembly(load_recipe(project / "my.toml"), project, ())
    with pytest.raises(SearchError, match="no evaluated policy is inside the budget"):
        refined(a.problem, [])


@pytest.mark.parametrize(("overrides", "words"), [
    (["ptq.refine=5"], "network order"),
    (["ptq.refine=5", "ptq.preset=fast"], "network order"),
    (["ptq.refine=5", "ptq.preset=accurate", 'tradeoff=["size_bytes"]'], "front"),
    (["ptq.refine=-1", "ptq.preset=accurate"], "greater than or equal to 0"),
])  # fmt: skip
def test_what_cannot_be_refined_is_refused(project, overrides, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe(project / "my.toml", overrides)


def test_refining_comes_after_the_search_and_leaves_its_digest(project):
    plain, refining = (
        load_recipe(project / "my.toml", ["ptq.preset=accurate", f"ptq.refine={count}", f"ptq.finalists={count + 1}"])
        for count in (0, 9)
    )
    assert plain.digest == refining.digest
