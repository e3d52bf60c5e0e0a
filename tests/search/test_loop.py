from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf, nan

import pytest
from optuna.trial import TrialState

from haqsearch.agents import Problem, build_agent
from haqsearch.errors import SearchError
from haqsearch.search.loop import PATIENCE, run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.search.storage import open_study
from haqsearch.spec import Choice, Evaluation, Policy, SearchSpace
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()
GOOD = AdditiveLoss(PROBLEM.space.model)


def random_agent(seed=1):
    return build_agent("random", PROBLEM, seed)


class ManyAtOnce:
    """A pool of several workers in one process: answers are computed when all have been sent, newest first."""

    def __init__(self, capacity, evaluate=GOOD):
        self.capacity, self.evaluate = capacity, evaluate
        self.most, self.waiting, self.done = 0, {}, {}

    def submit(self, policy):
        self.waiting[policy.digest] = policy
        self.most = max(self.most, len(self.waiting) + len(self.done))
        return policy.digest

    def result(self, handle):
        for digest, policy in reversed(self.waiting.items()):
            self.done[digest] = self.evaluate(policy)
        self.waiting = {}
        return self.done.pop(handle)

    def close(self):
        pass


def test_a_search_keeps_what_it_did():
    study, events = new_study(), []
    summary = run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 12, events.append)
    records = read_records(study)
    assert (summary.complete, summary.failed, summary.exhausted) == (12, 0, "")
    assert [event.record for event in events] == records
    assert [event.complete for event in events] == list(range(1, 13))
    assert summary.best == max(records, key=lambda r: r.score)
    assert events[-1].best == summary.best
    for record, trial in zip(records, study.trials, strict=True):
        assert PROBLEM.params_of(record.policy) == trial.params  # Optuna's parameters are the policy evaluated
        assert record.score == -GOOD(record.policy).loss == trial.value
        assert record.evaluation.metrics == PROBLEM.costing.costs(record.policy)  # priced here: the evaluator did not
        assert record.feasible


def test_run_again_it_does_nothing_and_longer_it_goes_on():
    study = new_study()
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 6)
    before = read_records(study)

    def never(policy: Policy) -> Evaluation:
        raise AssertionError("evaluated again")

    summary = run_search(PROBLEM, random_agent(), SerialPool(never), study, 6)
    assert (summary.complete, read_records(study)) == (6, before)
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 9)
    longer = new_study()
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), longer, 9)
    assert read_records(study) == read_records(longer)


@pytest.mark.parametrize("agent", ["random", "tpe"])
def test_several_at_once_are_told_in_order_and_deterministic(agent):
    pools = [ManyAtOnce(4), ManyAtOnce(4)]
    found = []
    for pool in pools:
        study, told = new_study(), []
        run_search(
            PROBLEM, build_agent(agent, PROBLEM, 2), pool, study, 22, lambda e, told=told: told.append(e.record.number)
        )
        assert told == list(range(22))
        found.append([r.policy for r in read_records(study)])
    assert pools[0].most == 4
    assert found[0] == found[1]
    assert len(set(found[0])) == 22


def test_several_at_once_continue_exactly_after_a_kill():
    whole, killed = new_study(), new_study()
    run_search(PROBLEM, build_agent("tpe", PROBLEM, 2), ManyAtOnce(3), whole, 20)

    class Killed(BaseException):
        pass

    def die_at_fourteen(event):
        if event.complete == 14:
            raise Killed

    with pytest.raises(Killed):
        run_search(PROBLEM, build_agent("tpe", PROBLEM, 2), ManyAtOnce(3), killed, 20, die_at_fourteen)
    assert len(killed.get_trials(states=(TrialState.RUNNING,))) == 2
    run_search(PROBLEM, build_agent("tpe", PROBLEM, 2), ManyAtOnce(3), killed, 20)
    assert [r.policy for r in read_records(killed)] == [r.policy for r in read_records(whole)]


@pytest.mark.parametrize("written", [0, 1, 5])
def test_a_trial_killed_while_it_was_written_is_written_to_its_end(tmp_path, written):
    """The journal is cut after some of the parameters, as a kill -9 cuts it."""
    whole, folder = new_study(), tmp_path
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), whole, 8)
    study = open_study(folder, "cut")
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 5)
    study.sampler = random_agent()
    study.ask(PROBLEM.distributions)
    journal = folder / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    keep = len(lines) - len(PROBLEM.distributions) + written
    journal.write_bytes(b"".join(lines[:keep]) + b'{"op_code": 5, "wor')
    study = open_study(folder, "cut")
    assert len(study.trials[-1].params) == written
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 8)
    assert [r.policy for r in read_records(study)] == [r.policy for r in read_records(whole)]
    assert all(t.state == TrialState.COMPLETE for t in study.trials)


def test_a_trial_evaluated_but_not_told_is_not_evaluated_again():
    study, seen = new_study(), Counter()

    def counting(policy: Policy) -> Evaluation:
        seen[policy.digest] += 1
        return GOOD(policy)

    class Killed(BaseException):
        pass

    run_search(PROBLEM, random_agent(), SerialPool(counting), study, 4)
    tell = study.tell
    study.tell = lambda *args, **kwargs: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        run_search(PROBLEM, random_agent(), SerialPool(counting), study, 8)
    study.tell = tell
    run_search(PROBLEM, random_agent(), SerialPool(counting), study, 8)
    assert len(seen) == 8
    assert set(seen.values()) == {1}


def test_a_trial_another_version_of_the_agent_began_is_dropped():
    study = new_study()
    run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 4)
    first = PROBLEM.free[0]
    for value in range(len(first.candidates)):  # begun with every value there is: the agent wants one of them at most
        study.enqueue_trial({first.name: value})
        study.ask({first.name: PROBLEM.distributions[first.name]})
    summary = run_search(PROBLEM, random_agent(), SerialPool(GOOD), study, 12)
    dropped = [t for t in study.trials if t.state == TrialState.FAIL]
    assert summary.complete == 12
    assert len(study.trials) - 12 == len(dropped) >= 1
    assert all(r.feasible for r in read_records(study))


def test_failures_are_kept_and_do_not_count():
    study = new_study()

    def brittle(policy: Policy) -> Evaluation:
        if int(policy.digest, 16) % 2:
            raise RuntimeError(f"no kernel for {policy.digest}")
        return GOOD(policy)

    summary = run_search(PROBLEM, random_agent(), SerialPool(brittle), study, 10)
    failed = [r for r in read_records(study) if r.score is None]
    assert summary.complete == 10
    assert summary.failed == len(failed) > 0
    assert all(r.evaluation.error == f"RuntimeError: no kernel for {r.policy.digest}" for r in failed)
    assert not any(r.feasible for r in failed)


def test_failures_in_a_row_end_the_search_with_the_last_error():
    study = new_study()
    with pytest.raises(SearchError, match=f"{PATIENCE} evaluations in a row.*disk full"):
        run_search(PROBLEM, random_agent(), SerialPool(lambda policy: Evaluation.failed("disk full")), study, 50)
    assert len(study.trials) == PATIENCE


@pytest.mark.parametrize("value", [nan, inf, None])
def test_a_score_that_is_no_number_is_a_failure(value):
    study = new_study()
    bad = SerialPool(lambda policy: replace(GOOD(policy), loss=value))
    with pytest.raises(SearchError, match="the evaluation's loss is"):
        run_search(PROBLEM, random_agent(), bad, study, 5)
    assert all(t.state == TrialState.FAIL for t in study.trials)
    assert all(r.evaluation.loss is None for r in read_records(study))


def test_other_numbers_may_be_missing():
    study = new_study()
    pool = SerialPool(lambda policy: replace(GOOD(policy), kl=nan, accuracy=None))
    assert run_search(PROBLEM, random_agent(), pool, study, 3).complete == 3
    assert {(r.evaluation.kl, r.evaluation.accuracy) for r in read_records(study)} == {(None, None)}


def test_an_interrupt_is_no_failure():
    def interrupted(policy: Policy) -> Evaluation:
        raise KeyboardInterrupt

    study = new_study()
    with pytest.raises(KeyboardInterrupt):
        run_search(PROBLEM, random_agent(), SerialPool(interrupted), study, 5)
    assert [t.state for t in study.trials] == [TrialState.RUNNING]


def test_a_space_with_nothing_free_has_one_evaluation():
    model = PROBLEM.space.model
    eight = Choice.parse("w8a8")
    space = SearchSpace.build(model, (8,), (8,), {layer.name: eight for layer in model})
    problem = Problem(space, PROBLEM.costing, (), PROBLEM.objective)
    study = new_study()
    summary = run_search(problem, build_agent("random", problem, 0), SerialPool(GOOD), study, 5)
    assert summary.complete == 1
    assert "all 1 policies" in summary.exhausted
    assert summary.best.policy == Policy.uniform(model, eight)
