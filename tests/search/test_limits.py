"""When a search ends, that it says why, and what it has left on disk by then."""

from __future__ import annotations

import json
import time
from math import inf

import pytest

from haqsearch.agents import build_agent
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import best_of, read_records, write_best
from haqsearch.spec import Policy
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()
GOOD = AdditiveLoss(PROBLEM.space.model)


def search(study, evaluations=20, pool=None, **limits):
    return run_search(
        PROBLEM, build_agent("random", PROBLEM, 1), pool or SerialPool(GOOD), study, evaluations, **limits
    )


class Clocked:
    """A pool whose clock, the search's, stands still but while it evaluates: ``seconds`` each."""

    def __init__(self, monkeypatch, seconds, capacity=1):
        self.now, self.seconds, self.capacity = 100.0, seconds, capacity
        monkeypatch.setattr("haqsearch.search.loop.perf_counter", lambda: self.now)

    def submit(self, policy, part=None):
        return policy, self.now

    def result(self, handle):
        policy, begun = handle
        self.now = max(self.now, begun + self.seconds)
        return GOOD(policy)

    def close(self):
        pass


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("budget", [0.0, 9.9, 10.0, 25.0])
def test_the_time_budget_is_exceeded_by_one_evaluation_at_most(monkeypatch, capacity, budget):
    study, pool = new_study(), Clocked(monkeypatch, 10.0, capacity)
    summary = search(study, 20, pool, max_seconds=budget)
    assert (summary.ended, summary.complete < 20) == ("max_time", True)
    assert budget <= summary.seconds < max(budget, 1e-9) + 10.0 or (budget == 0.0 and summary.seconds == 10.0)
    assert summary.complete >= 1, "some policy is worth more than none"
    assert f"after {summary.complete} evaluations" in summary.why


def test_with_more_time_it_goes_on_where_it_was(monkeypatch):
    study, whole = new_study(), new_study()
    search(whole, 20)
    pool = Clocked(monkeypatch, 1.0)
    assert search(study, 20, pool, max_seconds=5.0).complete == 5
    assert search(study, 20, pool, max_seconds=0.0).complete == 5, "it has evaluations: no other is begun without time"
    summary = search(study, 20, pool, max_seconds=inf)
    assert (summary.ended, summary.complete) == ("max_evaluations", 20)
    assert [r.policy for r in read_records(study)] == [r.policy for r in read_records(whole)]


@pytest.mark.parametrize("patience", [1, 4, 9])
def test_it_ends_when_so_many_policies_were_no_better(patience):
    study, events = new_study(), []
    summary = search(study, 200, on_event=events.append, patience=patience)
    numbers = [event.best.number for event in events]
    assert summary.ended == "patience"
    assert events[-1].record.number - numbers[-1] == patience
    assert all(event.record.number - number < patience for event, number in zip(events[:-1], numbers, strict=False))
    again = search(study, 200, patience=patience)
    assert (again.ended, again.complete) == ("patience", summary.complete), "continued, it is as patient as before"
    assert search(study, 200, patience=patience + 1).complete > summary.complete


def test_what_ends_it_first_is_said():
    assert search(new_study(), 5, patience=50, max_seconds=600.0).ended == "max_evaluations"
    tiny = toy_problem(layers=4, bits=(4, 8), share=0.9)
    agent = build_agent("random", tiny, 1)
    summary = run_search(tiny, agent, SerialPool(AdditiveLoss(tiny.space.model)), new_study(), 1000)
    assert summary.ended == "exhausted"
    assert summary.why == summary.exhausted != ""


def test_best_json_is_a_policy_file_with_its_scores(tmp_path):
    study = new_study()
    search(study, 12)
    best = best_of(read_records(study))
    write_best(tmp_path / "best.json", best, model="toy")
    content = json.loads((tmp_path / "best.json").read_text())
    assert Policy.from_json(content) == best.policy
    assert (content["score"], content["evaluation"], content["fidelity"]) == (best.score, best.number, "ptq")
    assert content["costs"] == PROBLEM.costing.costs(best.policy)
    assert (content["model"], content["digest"]) == ("toy", best.policy.digest)


def test_a_search_in_earnest_keeps_to_its_seconds():
    def slow(policy):
        time.sleep(0.05)
        return GOOD(policy)

    assert search(new_study(), 1000, SerialPool(slow), max_seconds=0.3).complete <= 6
