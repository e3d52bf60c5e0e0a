"""Conformance of search agents: subclass ``AgentCases`` in your tests, and every law of an agent is checked on yours.

    from haqsearch.testing.agent_cases import AgentCases

    class TestMyAgent(AgentCases):
        def build(self, problem, seed):
            return MyAgent(problem, seed)

The problem searched is ``toy_problem`` of ``haqsearch.testing.toy``. An agent that can trade the objective off against
metrics passes ``TradeoffCases`` as well.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf, isfinite, nan
from typing import Any, ClassVar

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import TrialState

from haqsearch.agents import Agent, Problem
from haqsearch.errors import SearchError
from haqsearch.search.loop import Summary, run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import Record, best_of, pareto, read_records
from haqsearch.spec import Evaluation, Policy
from haqsearch.testing.toy import AdditiveLoss, ShapeCosts, new_study, toy_model, toy_problem

__all__ = ["AgentCases", "TradeoffCases", "AdditiveLoss", "ShapeCosts", "new_study", "toy_model", "toy_problem"]

SEED = 1


class _ThreeAtATime(SerialPool):
    capacity = 3


class AgentCases:
    """The laws of one agent. Override ``build``; where your agent is slow, lower ``evaluations``."""

    evaluations = 30
    tradeoff: tuple[str, ...] = ()
    _searched: ClassVar[tuple[Problem, Study]]

    def problem(self, **options: Any) -> Problem:
        """The problem searched: ``toy_problem`` with ``options``."""
        return toy_problem(tradeoff=self.tradeoff, **options)

    def build(self, problem: Problem, seed: int) -> Agent:
        """Your agent, with no options but those a user would leave alone."""
        raise NotImplementedError("override build(self, problem, seed) to return your agent")

    def search(self, problem: Problem, seed: int, study: Study | None = None) -> tuple[Summary, list[Record]]:
        study = study or new_study(problem)
        evaluator = AdditiveLoss(problem.space.model)
        summary = run_search(problem, self.build(problem, seed), SerialPool(evaluator), study, self.evaluations)
        return summary, read_records(study)

    def searched(self) -> tuple[Problem, Study]:
        """A problem and a whole search of it with seed ``SEED``: done once, for all the laws that look at one."""
        kind = type(self)
        if "_searched" not in vars(kind):
            problem = self.problem()
            study = new_study(problem)
            self.search(problem, SEED, study)
            kind._searched = problem, study
        return kind._searched

    def records(self) -> list[Record]:
        """Those of ``searched``."""
        return read_records(self.searched()[1])

    def test_policies_are_in_the_space_and_inside_every_limit(self) -> None:
        other = self.problem(objective="accuracy")
        for problem, records in ((self.searched()[0], self.records()), (other, self.search(other, seed=1)[1])):
            assert records, "the agent proposed nothing; with a feasible space it has to propose something"
            for record in records:
                assert problem.space.contains(record.proposal), (
                    f"trial {record.number}: propose() returned a policy outside the space: {record.proposal.digest}. "
                    "Build policies with problem.policy_of(params), params as in problem.distributions"
                )
                assert problem.space.contains(record.policy), f"trial {record.number}: evaluated outside the space"
                assert problem.feasible(record.policy), (
                    f"trial {record.number}: evaluated outside the budget. Leave sample_relative to the base class: "
                    "it repairs what propose() returns"
                )
                record.policy.check(problem.space.model)

    def test_the_uniform_policies_that_fit_come_first(self) -> None:
        (problem, _), records = self.searched(), self.records()
        first = [record.policy for record in records[: len(problem.uniform_fits)]]
        assert first == list(problem.uniform_fits), "a search could end below the uniform baseline"
        assert {r.source for r in records[: len(first)]} == {"uniform"}

    def test_the_same_seed_gives_the_same_search(self) -> None:
        _, again = self.search(self.searched()[0], SEED)
        assert [r.policy for r in self.records()] == [r.policy for r in again], (
            "two searches with one seed differ: draw from self.rng(trial) only, and iterate over no sets"
        )

    def test_a_restarted_agent_continues_as_if_it_had_not_stopped(self) -> None:
        (problem, _), whole = self.searched(), self.records()
        study, evaluator = new_study(problem), AdditiveLoss(problem.space.model)
        stops = sorted({1, len(whole) // 2, len(whole) - 1, self.evaluations})
        for stop in stops:  # every time a new agent on the old study
            run_search(problem, self.build(problem, SEED), SerialPool(evaluator), study, stop)
        assert [r.policy for r in read_records(study)] == [r.policy for r in whole], (
            f"stopped and restarted after {', '.join(map(str, stops[:-1]))} trials, the search went elsewhere: what an agent "
            "remembers has to be a function of self.completed(study)"
        )

    def test_no_policy_is_proposed_twice(self) -> None:
        digests = [record.policy.digest for record in self.records()]
        assert len(digests) == len(set(digests)), (
            "a policy was evaluated twice; leave sample_relative to the base class"
        )

    def test_a_tiny_space_ends(self) -> None:
        problem = self.problem(layers=4, bits=(4, 8), share=0.9)
        study, evaluator = new_study(problem), AdditiveLoss(problem.space.model)
        summary = run_search(problem, self.build(problem, 6), SerialPool(evaluator), study, 1000)
        assert summary.exhausted, "nothing new was left, yet the agent did not raise SpaceExhausted"
        assert summary.complete <= len(problem.feasible_keys)
        again = run_search(problem, self.build(problem, 6), SerialPool(evaluator), study, 1000)
        assert again.complete == summary.complete, "an exhausted search, run again, found something after all"

    def test_failed_evaluations_are_survived_and_not_repeated(self) -> None:
        problem = self.problem()
        good = AdditiveLoss(problem.space.model)

        def brittle(policy: Policy) -> Evaluation:
            return Evaluation.failed("out of memory") if int(policy.digest, 16) % 3 == 0 else good(policy)

        study = new_study(problem)
        run_search(problem, self.build(problem, 7), SerialPool(brittle), study, self.evaluations)
        records = read_records(study)
        failed = {r.policy.digest for r in records if r.score is None}
        assert len({r.policy.digest for r in records}) == len(records), "a policy that had failed was proposed again"
        assert all(r.evaluation.error == "out of memory" for r in records if r.policy.digest in failed)

    def test_scores_that_are_no_numbers_are_failures(self) -> None:
        """The first eight evaluations come to nothing: an agent may have nothing to learn from for longer than it thinks."""
        for objective in ("loss", "accuracy"):
            problem = self.problem(objective=objective)
            good, count = AdditiveLoss(problem.space.model), itertools.count()

            def wild(policy: Policy, good: AdditiveLoss = good, count: Iterator[int] = count) -> Evaluation:
                number = next(count)
                score = (nan, inf, -inf)[number % 3]
                return replace(good(policy), loss=score, accuracy=score) if number < 8 else good(policy)

            summary, records = self.survived(problem, wild, "when the first eight evaluations had failed")
            assert summary.failed == min(8, len(records)), "a score that is no number was taken for one"
            assert all(r.score is None or isfinite(r.score) for r in records)

    def test_where_nothing_can_be_evaluated_the_search_ends_with_the_reason(self) -> None:
        def broken(policy: Policy) -> Evaluation:
            return Evaluation.failed("no kernel")

        problem, study = self.problem(), new_study(self.problem())
        try:
            summary = run_search(problem, self.build(problem, 15), SerialPool(broken), study, self.evaluations)
        except SearchError as error:
            assert "no kernel" in str(error), (
                f"not the evaluations' error but the agent's own ended the search: {error}"
            )
        else:
            assert summary.exhausted, "ten failures in a row ended nothing"
        records = read_records(study)
        assert (best_of(records), pareto(records, problem.counted)) == (None, [])

    def test_scores_that_say_nothing_are_survived(self) -> None:
        """All the same; zero, where a logarithm has no value; and of sizes that no single precision number has."""
        sizes = itertools.cycle((1e-300, 1e30, 1e300))
        same, zero = itertools.repeat(0.25), itertools.repeat(0.0)
        for objective, scores in (("loss", same), ("loss", zero), ("loss", sizes), ("accuracy", same)):
            problem = self.problem(objective=objective)
            good = AdditiveLoss(problem.space.model)

            def flat(policy: Policy, good: AdditiveLoss = good, scores: Iterator[float] = scores) -> Evaluation:
                score = next(scores)
                return replace(good(policy), loss=score, accuracy=score)

            self.survived(problem, flat, f"when the scores were {scores}")

    def survived(
        self, problem: Problem, evaluate: Callable[[Policy], Evaluation], when: str
    ) -> tuple[Summary, list[Record]]:
        """A short search with evaluations as they should not be, which the agent has to see through to its end."""
        study, evaluations = new_study(problem), min(self.evaluations, 16)
        try:
            summary = run_search(problem, self.build(problem, 16), SerialPool(evaluate), study, evaluations)
        except Exception as error:
            raise AssertionError(
                f"the agent raised {type(error).__name__}: {error} {when}. self.completed(study) can be empty, and its "
                "scores equal, zero or huge"
            ) from error
        assert summary.complete == evaluations or summary.exhausted, f"the search stopped {when}"
        records = read_records(study)
        assert len({r.policy for r in records}) == len(records), (
            f"a policy was proposed twice {when}; leave sample_relative to the base class"
        )
        return summary, records

    def test_several_evaluations_at_a_time(self) -> None:
        """Three workers: an agent is asked while others are busy, knows their policies, and is asked the same again."""
        problem = self.problem()

        def search(stops: Sequence[int]) -> list[Policy]:
            study, evaluator = new_study(problem), AdditiveLoss(problem.space.model)
            for stop in stops:
                try:
                    run_search(problem, self.build(problem, 17), _ThreeAtATime(evaluator), study, stop)
                except Exception as error:
                    raise AssertionError(
                        f"the agent raised {type(error).__name__}: {error} while two trials were running; they are in the "
                        "study, without a score"
                    ) from error
            return [record.policy for record in read_records(study)]

        once, again = search([self.evaluations]), search([self.evaluations])
        assert once == again, "two searches with one seed and three workers differ"
        assert len(set(once)) == len(once), "a policy that another worker was evaluating was proposed again"
        interrupted = search([len(once) // 2, self.evaluations])
        assert len(set(interrupted)) == len(interrupted) == len(once)

    def test_nothing_is_learned_from_another_study(self) -> None:
        problem, study = self.searched()
        good, more = AdditiveLoss(problem.space.model), self.evaluations + 5

        def contrary(policy: Policy) -> Evaluation:
            return replace(good(policy), loss=1 / (good(policy).loss or 1.0))

        alone, second = _copy(study), _copy(study)
        run_search(problem, self.build(problem, SEED), SerialPool(good), alone, more)
        agent = self.build(problem, SEED)
        run_search(problem, agent, SerialPool(contrary), new_study(problem), self.evaluations)
        # First a study as long as the one learned from, then one that begins as that one did.
        for following in (second, new_study(problem)):
            run_search(problem, agent, SerialPool(good), following, more)
            assert [r.policy for r in read_records(following)] == [r.policy for r in read_records(alone)], (
                "an agent used on one study searched the next one differently: compare self.completed(study) with what "
                "it has learned from, and start over when they differ"
            )

    def test_the_global_random_state_is_the_users(self) -> None:
        problem, _ = self.searched()  # whatever is loaded lazily is loaded now
        before = _global_random_state()
        self.search(problem, seed=2)
        assert _global_random_state() == before, "the agent drew from a global generator; draw from self.rng(trial)"

    def test_unfinished_trials_are_taken_up(self) -> None:
        """Asked, and killed before the evaluation: the search goes on with that very policy."""
        (problem, _), whole = self.searched(), self.records()
        study, evaluator = new_study(problem), AdditiveLoss(problem.space.model)
        run_search(problem, self.build(problem, SEED), SerialPool(evaluator), study, len(whole) // 2)
        study.sampler = self.build(problem, SEED)
        if len(whole) // 2 < len(whole):
            study.ask(problem.distributions)
        _, records = self.search(problem, SEED, study)
        assert not study.get_trials(states=(TrialState.RUNNING,)), "a trial was left running for ever"
        assert [r.policy for r in records] == [r.policy for r in whole]


class TradeoffCases(AgentCases):
    """The laws of agents of several objectives: all of ``AgentCases`` in a trade-off, and some that only fronts have."""

    tradeoff = ("bops",)

    def test_it_says_that_it_can(self) -> None:
        problem = self.problem()
        assert self.build(problem, 1).several_objectives, (
            "an agent that is searched with a trade-off has several_objectives = True"
        )

    def test_a_trial_is_told_its_score_and_its_costs(self) -> None:
        problem = self.problem()
        study = new_study(problem)
        _, records = self.search(problem, seed=11, study=study)
        told = [trial.values for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
        even = problem.objective.even
        assert told == [[even(r.score or 0.0), *(r.evaluation.metrics[m] for m in self.tradeoff)] for r in records]

    def test_without_a_limit_the_whole_space_may_be_searched(self) -> None:
        problem = replace(self.problem(), limits=())
        _, records = self.search(problem, seed=12)
        policies = [record.policy for record in records]
        assert len(set(policies)) == len(policies) >= len(problem.uniform_fits)
        assert all(
            problem.space.contains(policy) and record.feasible for policy, record in zip(policies, records, strict=True)
        )

    def test_several_metrics_at_once(self) -> None:
        problem = replace(self.problem(), tradeoff=("size_bytes", "bops"))
        once, again = (self.search(problem, seed=13)[1] for _ in range(2))
        assert [r.policy for r in once] == [r.policy for r in again]
        assert all(problem.feasible(record.policy) for record in once)


def _copy(study: Study) -> Study:
    storage = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=storage)
    return optuna.load_study(study_name=study.study_name, storage=storage)


def _global_random_state() -> str:
    torch = sys.modules.get("torch")
    state = [random.getstate(), np.random.get_state()]  # noqa: NPY002 - looked at, to see that nobody used it
    with np.printoptions(threshold=sys.maxsize):
        return repr([*state, torch.get_rng_state().numpy() if torch else None])
