"""Laws of the ladder: what it prunes, what it believes, and that a search on it is one search however it is run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState

from haqsearch.agents import build_agent
from haqsearch.errors import SearchError
from haqsearch.search.ladder import Ladder, combined
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.spec import Evaluation, Policy
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()
GOOD = AdditiveLoss(PROBLEM.space.model)
SAMPLES = 100
LADDER = Ladder(rungs=(20, 50), reduction=2, trial_run=6)


class InParts:
    """An evaluator of ``SAMPLES`` samples, each of which sees the policy's loss with noise of its own.

    ``blind``: samples before this one say nothing about the policy.
    """

    def __init__(self, noise=0.02, blind=0):
        self.noise, self.blind, self.asked = noise, blind, []

    def __call__(self, policy: Policy, part=(0, None)) -> Evaluation:
        first, last = part[0], part[1] or SAMPLES
        self.asked.append((policy.digest, first, last))
        rng = np.random.default_rng(int(policy.digest, 16) % 2**32)
        losses = GOOD(policy).loss * (1 + self.noise * rng.standard_normal(SAMPLES))
        losses[: self.blind] = rng.random(self.blind)
        mean = float(losses[first:last].mean())
        return Evaluation(mean / 2, mean, mean, last - first, 0.001 * (last - first))


class Workers:
    """A pool of several workers in one process: what was sent is computed newest first, or oldest first."""

    def __init__(self, capacity, evaluate, newest_first=True):
        self.capacity, self.evaluate, self.waiting, self.done = capacity, evaluate, {}, {}
        self.order = reversed if newest_first else list

    def submit(self, policy, part=None):
        assert len(self.waiting) + len(self.done) < self.capacity
        self.waiting[policy.digest] = (policy, part)
        return policy.digest

    def result(self, handle):
        for digest, (policy, part) in self.order(self.waiting.items()):
            self.done[digest] = self.evaluate(policy, part=part)
        self.waiting = {}
        return self.done.pop(handle)

    def close(self):
        pass


def search(study, pool, evaluations=24, agent="tpe", ladder=LADDER, on_event=lambda event: None, **limits):
    agent = build_agent(agent, PROBLEM, seed=3, max_evaluations=evaluations)
    return run_search(PROBLEM, agent, pool, study, evaluations, on_event, ladder=ladder, **limits)


def told(study):
    """What a search is: every finished trial with its state, its score and how far it came; seconds aside."""
    return [(r.policy.digest, r.score, replace(r.evaluation, seconds=0.0)) for r in read_records(study)]


def test_pruned_policies_count_are_never_best_and_are_never_proposed_again():
    study, events = new_study(), []
    evaluate = InParts()
    summary = search(study, SerialPool(evaluate), 40, on_event=events.append)
    records = read_records(study)
    pruned = [r for r in records if r.pruned]
    assert summary.complete + summary.pruned == len(records) == 40 == events[-1].evaluations
    assert summary.pruned == len(pruned) >= 5
    assert {r.evaluation.fidelity for r in pruned} <= {"ptq:20", "ptq:50"}
    assert all(r.evaluation.samples == int(r.evaluation.fidelity[4:]) for r in pruned)
    assert not any(r.feasible for r in pruned)
    assert summary.best.evaluation.samples == SAMPLES
    assert len({r.policy.digest for r in records}) == 40
    assert not any(r.source == "uniform" for r in pruned)
    assert [t.state for t in study.trials].count(TrialState.PRUNED) == len(pruned)
    asked = Counter((digest, sample) for digest, a, b in evaluate.asked for sample in range(a, b))
    assert set(asked.values()) == {1}, "a sample of a policy was scored twice"


def test_a_policy_that_climbs_to_the_top_has_the_score_of_one_that_took_the_lift():
    with_rungs, without = new_study(), new_study()
    search(with_rungs, SerialPool(InParts()), LADDER.trial_run, "random")
    search(without, SerialPool(InParts()), LADDER.trial_run, "random", ladder=Ladder())
    for ours, theirs in zip(read_records(with_rungs), read_records(without), strict=True):
        assert ours.policy == theirs.policy
        assert ours.score == pytest.approx(theirs.score, rel=1e-12)
        assert (ours.evaluation.samples, ours.evaluation.fidelity) == (SAMPLES, "ptq")


@pytest.mark.parametrize("capacity", [1, 3])
def test_however_often_it_is_killed_it_is_the_same_search(capacity):
    """Killed before and after every kind of write: reports, stages, evaluations, verdicts."""
    whole = new_study()
    search(whole, Workers(capacity, InParts()))

    class Killed(BaseException):
        pass

    killed = new_study()
    storage = killed._storage
    writes = {name: getattr(storage, name) for name in
              ("set_trial_user_attr", "set_trial_intermediate_value", "set_trial_state_values", "create_new_trial")}  # fmt: skip
    left = [0]

    def mortal(name, after):
        def write(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = writes[name](*args, **kwargs)
            if left[0] == 0 and after:
                raise Killed
            return result

        return write

    rng, kills = np.random.default_rng(capacity), 0
    while True:
        for name in writes:
            setattr(storage, name, mortal(name, bool(rng.integers(2))))
        left[0] = int(rng.integers(2, 60))
        try:
            search(killed, Workers(capacity, InParts()))
            break
        except Killed:
            kills += 1
    assert kills >= 5
    assert told(killed) == told(whole)


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_pool_that_answers_in_another_order_changes_nothing(capacity):
    one, other = new_study(), new_study()
    search(one, Workers(capacity, InParts()))
    search(other, SerialPool(InParts()) if capacity == 1 else Workers(capacity, InParts(), newest_first=False))
    assert told(one) == told(other)


def test_a_rung_that_predicts_nothing_is_dropped_and_said():
    study, said = new_study(), []
    evaluate = InParts(blind=20)
    ladder = replace(LADDER, rungs=(20, 90))
    summary = search(study, SerialPool(evaluate), 30, "random", ladder=ladder, say=said.append)
    rho = ladder.correlations(study)
    assert rho[20] < 0.8 <= rho[90]
    assert ladder.kept(study) == (90,)
    assert len(said) == 1
    assert "rung of 20 samples dropped" in said[0]
    assert "rung of 90 samples kept" in said[0]
    after = [r for r in read_records(study) if r.number >= ladder.trial_run]
    assert {r.evaluation.fidelity for r in after if r.pruned} == {"ptq:90"}
    assert ladder.summary(study)["rungs"][0]["scored"] == ladder.trial_run
    # Continued by another process, it says nothing new and does the same.
    search(study, SerialPool(evaluate), 35, "random", ladder=ladder, say=said.append)
    assert len(said) == 1
    assert summary.pruned > 0


def test_without_a_rung_that_is_kept_nobody_is_pruned():
    study = new_study()
    ladder = Ladder((20,), trial_run=6, least_correlation=0.8)
    evaluate = InParts(blind=20)
    search(study, SerialPool(evaluate), 20, "random", ladder=ladder)
    assert ladder.kept(study) == ()
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 20
    assert evaluate.asked[-1][1:] == (0, SAMPLES), "dropped, the rung is not climbed any more"


def test_a_rung_of_equal_scores_predicts_nothing():
    study = new_study()
    flat = SerialPool(lambda policy, part: replace(GOOD(policy), loss=1.0, samples=20))
    search(study, flat, 10, "random", ladder=Ladder((20,), trial_run=6))
    assert Ladder((20,), trial_run=6).correlations(study) == {20: 0.0}


def test_the_summary_accounts_for_every_policy_and_second():
    study = new_study()
    search(study, SerialPool(InParts()), 40)
    records = read_records(study)
    low, middle, top = LADDER.summary(study)["rungs"]
    assert (low["samples"], middle["samples"], top["samples"]) == (20, 50, None)
    assert low["scored"] == 40
    assert middle["scored"] == low["scored"] - low["pruned"]
    assert top["scored"] == middle["scored"] - middle["pruned"] == sum(r.score is not None for r in records)
    assert low["seconds"] == pytest.approx(40 * 20 * 0.001)
    assert sum(row["seconds"] for row in (low, middle, top)) == pytest.approx(
        sum(r.evaluation.seconds for r in records)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=14), st.integers(2, 4))
def test_the_verdicts_are_optunas_successive_halving(scores, reduction):
    """After the trial run the rule is SuccessiveHalvingPruner's, where its steps can say the same rung."""
    theirs, ours = new_study(), new_study()
    theirs.pruner = SuccessiveHalvingPruner(min_resource=5, reduction_factor=reduction)
    ladder = Ladder((5,), reduction, trial_run=2, least_correlation=-1.0)
    for value in (0.0, 1.0):  # the trial run: its trials reached the rung too
        for study in (theirs, ours):
            trial = study.ask()
            trial.report(value, 5)
            theirs.pruner.prune(study, study.trials[-1])
            study.tell(trial, value)
    ours.pruner = ladder
    for score in scores:
        verdicts = []
        for study in (theirs, ours):
            trial = study.ask()
            trial.report(float(score), 5)
            verdicts.append(trial.should_prune())
            assert study is theirs or trial.should_prune() == verdicts[-1], "asked again, it says the same"
            study.tell(trial, float(score))
        assert verdicts[0] == verdicts[1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=4))
def test_parts_combine_to_the_mean_over_all_samples(parts):
    made = [Evaluation(a, kl, kl, n, 0.5) for n, a, kl in parts]
    whole = combined(made)
    samples = np.repeat([a for _, a, _ in parts], [n for n, _, _ in parts])
    assert whole.samples == len(samples)
    assert whole.accuracy == pytest.approx(samples.mean())
    assert whole.seconds == 0.5 * len(parts)
    assert combined([*made, Evaluation.failed("out of memory")]).error == "out of memory"
    assert combined([*made, replace(made[0], accuracy=None)]).accuracy is None


def test_a_part_that_fails_fails_the_policy():
    study = new_study()
    evaluate = InParts()

    def brittle(policy, part):
        return Evaluation.failed("no memory") if part[0] and int(policy.digest, 16) % 2 else evaluate(policy, part)

    summary = search(study, SerialPool(brittle), 12, "random")
    failed = [r for r in read_records(study) if r.evaluation.error]
    assert summary.failed == len(failed) > 0
    assert summary.complete + summary.pruned == 12
    assert not any(r.pruned or r.feasible for r in failed)


def test_several_objectives_have_no_ladder():
    study = optuna.create_study(directions=["maximize", "maximize"])
    with pytest.raises(SearchError, match="prunes by one objective"):
        search(study, SerialPool(InParts()))
