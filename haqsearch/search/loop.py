"""The one loop: ask the agent, evaluate, tell the study. What is told is on disk; what is not is done again.

Trials are told in the order of their numbers, oldest first, however many are evaluated at a time. What the agent
knows when it is asked is then a function of the seed and the pool's capacity, not of which worker was fastest - and a
search that is killed and continued is the search that was never killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from haqsearch.agents.base import Agent, SpaceExhausted
from haqsearch.agents.problem import Problem
from haqsearch.errors import SearchError
from haqsearch.search.pool import Pool
from haqsearch.search.records import Record, best_of, policy_text, read_records, record_of
from haqsearch.spec import Evaluation, Policy, violation

PATIENCE = 10  # failed evaluations in a row before the search is given up

_EXHAUSTED = "exhausted"


@dataclass(frozen=True)
class Event:
    """After every finished trial. Counts are over the whole study, ``seconds`` since this call to ``run_search``."""

    record: Record
    best: Record | None
    complete: int
    failed: int
    max_evaluations: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """How a search ended. ``exhausted`` is empty, or says why there was nothing left to propose."""

    best: Record | None
    complete: int
    failed: int
    exhausted: str
    seconds: float


def run_search(
    problem: Problem,
    agent: Agent,
    pool: Pool,
    study: Study,
    max_evaluations: int,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Summary:
    """Search until the study holds ``max_evaluations`` completed trials, or the agent has nothing new to propose.

    Failed evaluations do not count, but ``PATIENCE`` of them in a row raise SearchError with the last one's error.
    Trials that a killed process left unfinished are finished first. The pool stays open.
    """
    run = _Run(problem, agent, pool, study, max_evaluations, on_event)
    run.fill()
    while run.flight:
        run.finish_oldest()
        run.fill()
    return Summary(run.best, run.complete, run.failed, run.exhausted, run.seconds)


class _Run:
    def __init__(
        self,
        problem: Problem,
        agent: Agent,
        pool: Pool,
        study: Study,
        max_evaluations: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self.problem, self.pool, self.study = problem, pool, study
        self.max_evaluations, self.on_event = max_evaluations, on_event
        study.sampler = agent
        records = read_records(study)
        self.best = best_of(records)
        self.complete = sum(r.score is not None for r in records)
        self.failed = len(records) - self.complete
        self.failed_in_a_row = 0
        self.exhausted: str = study.user_attrs.get(_EXHAUSTED, "")
        self.unfinished = deque(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        self.flight: deque[tuple[Trial, Policy, Any]] = deque()
        self.start = perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self.start

    def fill(self) -> None:
        """Ask for and submit as many trials as the pool takes and the search still needs."""
        while len(self.flight) < self.pool.capacity and self.complete + len(self.flight) < self.max_evaluations:
            while self.unfinished:
                if trial := self.take_up(self.unfinished.popleft()):
                    break
            else:
                trial = self.ask()
            if trial is None:
                return
            policy = self.problem.policy_of(trial.params)
            self.flight.append((trial, policy, self.pool.submit(policy)))

    def ask(self) -> Trial | None:
        """A new trial with all its parameters on disk, or None at the end of the space."""
        if self.exhausted:
            return None
        try:
            trial = self.study.ask(self.problem.distributions)
            _ = (
                trial.relative_params
            )  # a space with nothing free suggests nothing, but the agent is to be asked all the same
        except SpaceExhausted as end:
            self.end(len(self.study.get_trials(deepcopy=False)) - 1, end)
            return None
        return trial

    def take_up(self, left: FrozenTrial) -> Trial | None:
        """A trial that a killed process left running, ready to be evaluated; None if nothing of it is left to do.

        One killed while its parameters were written is asked again: the study is as it was, so the agent answers as
        it did.
        """
        if "evaluation" in left.user_attrs:
            self.tell(left.number, Evaluation.from_json(left.user_attrs["evaluation"]))
            return None
        trial = Trial(self.study, left._trial_id)
        if "proposal" in left.user_attrs and len(left.params) == len(self.problem.distributions):
            return trial
        try:
            again = trial.relative_params
        except SpaceExhausted as end:
            self.end(left.number, end)
            return None
        if any(again[name] != value for name, value in left.params.items()):  # another version of the agent began it
            self.study.tell(left.number, state=TrialState.FAIL)
            return None
        for variable in self.problem.free:
            trial.suggest_int(variable.name, 0, len(variable.candidates) - 1)
        return trial

    def end(self, number: int, why: SpaceExhausted) -> None:
        """Close the trial that was opened in vain, and remember that there is nothing left."""
        self.exhausted = str(why)
        self.study.set_user_attr(_EXHAUSTED, self.exhausted)
        self.study.tell(number, state=TrialState.FAIL)

    def finish_oldest(self) -> None:
        trial, policy, handle = self.flight.popleft()
        evaluation = self.checked(policy, self.pool.result(handle))
        trial.set_user_attr("policy", policy_text(policy))
        trial.set_user_attr("evaluation", evaluation.to_json())
        self.tell(trial.number, evaluation)

    def checked(self, policy: Policy, evaluation: Evaluation) -> Evaluation:
        """The evaluation in plain JSON numbers, priced if the evaluator did not, and failed if it has no score."""
        accuracy, loss, kl = _finite(evaluation.accuracy), _finite(evaluation.loss), _finite(evaluation.kl)
        wanted = self.problem.objective.name
        error = evaluation.error
        if not error and {"accuracy": accuracy, "loss": loss, "kl": kl}[wanted] is None:
            error = f"the evaluation's {wanted} is {getattr(evaluation, wanted)}, not a number to search by"
        costs = {name: float(value) for name, value in evaluation.metrics.items()}
        excess = float(evaluation.violation)
        if not costs:
            costs = self.problem.costing.costs(policy)
            excess = violation(costs, self.problem.limits)
        return replace(evaluation, accuracy=accuracy, loss=loss, kl=kl, metrics=costs, violation=excess, error=error)

    def tell(self, number: int, evaluation: Evaluation) -> None:
        if evaluation.ok:
            told = self.study.tell(number, self.problem.objective.score(evaluation))
        else:
            told = self.study.tell(number, state=TrialState.FAIL)
        record = record_of(told)
        self.complete += evaluation.ok
        self.failed += not evaluation.ok
        self.failed_in_a_row = 0 if evaluation.ok else self.failed_in_a_row + 1
        self.best = best_of([r for r in (self.best, record) if r])
        self.on_event(Event(record, self.best, self.complete, self.failed, self.max_evaluations, self.seconds))
        if self.failed_in_a_row >= PATIENCE:
            raise SearchError(
                f"{PATIENCE} evaluations in a row failed, so the search stopped; the last one: {evaluation.error}"
            )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
