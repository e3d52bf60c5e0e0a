"""Searches of several objectives: what is told, what is kept, and that a kill at any line of the journal changes nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from math import inf

import pytest

from haqsearch.agents import build_agent
from haqsearch.errors import SearchError
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import pareto, read_records
from haqsearch.search.storage import open_study
from haqsearch.spec import Evaluation, Policy, dominates
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = replace(toy_problem(tradeoff=("bops",)), limits=())
GOOD = AdditiveLoss(PROBLEM.space.model)
EVALUATIONS = 36  # 11 uniform policies first; generations of 8


def searched(agent, study, evaluations=EVALUATIONS, evaluate=GOOD, **options):
    built = build_agent(agent, PROBLEM, 3, EVALUATIONS)
    return run_search(PROBLEM, built, SerialPool(evaluate), study, evaluations, **options)


@pytest.mark.parametrize("agent", ["nsga3", "tpe", "random"])
def test_killed_at_any_line_of_its_journal_it_goes_on_as_if_it_had_not_been(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # the kill is made by hand: nothing has to reach the disk
    whole = open_study(tmp_path / "whole", "front", directions=PROBLEM.directions)
    searched(agent, whole)
    expected = [(r.policy, r.source, r.score) for r in read_records(whole)]
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    # Around a new generation above all: its parents are written before its first child.
    news = [i for i, line in enumerate(lines) if b"parent:" in line]
    assert bool(news) == (agent == "nsga3")
    cuts = {2, len(lines) // 2, len(lines) - 1, *(news[1] + d for d in (0, 1, 2, 6) if news)}
    for cut in sorted(cuts):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "study.journal").write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
        study = open_study(folder, "front", directions=PROBLEM.directions)
        searched(agent, study)
        assert [(r.policy, r.source, r.score) for r in read_records(study)] == expected, f"cut at line {cut}"


def test_events_and_summary_carry_the_front():
    study, events = new_study(PROBLEM), []
    summary = searched("nsga3", study, on_event=lambda e: events.append((len(e.front), e.front.share)))
    records = read_records(study)
    front = pareto(records, PROBLEM.tradeoff)
    assert events[-1] == (len(summary.front), summary.front.share) == (len(front), summary.front.share)
    shares = [share for _, share in events]
    assert shares == sorted(shares) and shares[-1] > shares[len(PROBLEM.uniform_fits)] > 0, (
        "proposals add to what the uniform policies cover"
    )
    again = searched("nsga3", study)
    assert (len(again.front), again.front.share) == (len(front), pytest.approx(summary.front.share))
    assert searched_single().front is None


def searched_single():
    problem = toy_problem()
    return run_search(problem, build_agent("random", problem, 0), SerialPool(GOOD), new_study(), 3)


def test_patience_waits_for_the_front():
    study, fronts = new_study(PROBLEM), []
    summary = searched("random", study, 400, patience=12, on_event=lambda e: fronts.append(e.front.newest))
    records = read_records(study)
    assert summary.ended == "patience" and "the last on the front" in summary.why
    last = max(r.number for r in pareto(records, PROBLEM.tradeoff))
    assert fronts[-1] == last == len(records) - 1 - 12
    for record in records[last + 1 :]:
        assert any(dominates(_point(other), _point(record)) for other in records[: last + 1])


def _point(record):
    return (-record.score, *(record.evaluation.metrics[m] for m in PROBLEM.tradeoff))


@pytest.mark.parametrize("metrics", [{"size_bytes": 1.0}, {"size_bytes": 1.0, "bops": inf}])
def test_an_evaluation_without_a_traded_metric_is_a_failure(metrics):
    def poor(policy: Policy) -> Evaluation:
        return replace(GOOD(policy), metrics=metrics)

    study = new_study(PROBLEM)
    with pytest.raises(SearchError, match=r"the evaluation's bops is (None|inf), not a number"):
        searched("random", study, evaluate=poor)
    assert read_records(study)[0].score is None
