"""The one loop: ask the agent, evaluate, tell the study. What is told is on disk; what is not is done again.

However many trials are evaluated at a time, they stand in one queue: the one sent first is heard first, and one that a
ladder promotes stands at the end again. What the agent knows when it is asked is then a function of the seed and the
pool's capacity, not of which worker was fastest - and a search that is killed and continued is the search that was
never killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from time import perf_counter
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from haqsearch.agents.base import Agent
from haqsearch.agents.problem import Problem
from haqsearch.errors import SearchError
from haqsearch.search.ladder import STAGE, Ladder, Stage, combined
from haqsearch.search.pool import Pool
from haqsearch.search.records import Record, best_of, policy_text, read_records, record_of
from haqsearch.search.source import Source
from haqsearch.search.volume import FrontVolume
from haqsearch.spec import Evaluation, Policy, violation

PATIENCE = 10  # failed evaluations in a row before the search is given up

_NO_LADDER = Ladder()


@dataclass(frozen=True)
class Event:
    """After every finished trial. Counts are over the whole study, ``seconds`` since this call to ``run_search``.

    ``evaluations`` is what counts against ``max_evaluations``: trials with a score, and pruned ones.
    """

    record: Record
    best: Record | None
    complete: int
    failed: int
    max_evaluations: int
    seconds: float
    pruned: int = 0
    front: FrontVolume | None = None  # of a trade-off

    @property
    def evaluations(self) -> int:
        return self.complete + self.pruned


@dataclass(frozen=True)
class Summary:
    """How a search ended. ``exhausted`` is empty, or says why there was nothing left to propose.

    ``ended`` is what ended it: ``max_evaluations``, ``max_time``, ``patience`` or ``exhausted``; ``why`` says it in words.
    """

    best: Record | None
    complete: int
    failed: int
    exhausted: str
    seconds: float
    pruned: int = 0
    ended: str = "max_evaluations"
    why: str = ""
    front: FrontVolume | None = None  # of a trade-off


def run_search(
    problem: Problem,
    agent: Agent,
    pool: Pool,
    study: Study,
    max_evaluations: int,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    max_seconds: float = inf,
    patience: int = 0,
    ladder: Ladder = _NO_LADDER,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Search until the study holds ``max_evaluations`` evaluated trials, or the agent has nothing new to propose.

    max_seconds  no evaluation is begun when this call has taken so long; what is under way is finished. A study without
                 any evaluation gets one.
    patience     > 0: the search ends when so many policies proposed after the best feasible one were no better; in a
                 trade-off, after the last that entered the front
    ladder       rungs that a policy has to climb before it is scored on all samples; a pruned trial is an evaluation
    say          hears in a sentence what was decided during the search

    Failed evaluations do not count, but ``PATIENCE`` of them in a row raise SearchError with the last one's error.
    Trials that a killed process left unfinished are finished first. The pool stays open.
    """
    if ladder.rungs and len(study.directions) > 1:
        raise SearchError("a ladder prunes by one objective; search several without [ladder] rungs")
    run = _Run(problem, agent, pool, study, max_evaluations, on_event, max_seconds, patience, ladder, say)
    run.fill()
    while run.flight:
        run.finish_oldest()
        run.fill()
    ended, why = run.over
    front = run.front if problem.tradeoff else None
    return Summary(run.best, run.complete, run.failed, run.source.exhausted, run.seconds, run.pruned, ended, why, front)


@dataclass(frozen=True)
class _Flying:
    """A trial under evaluation: the part of the search split that ``stage`` says, or all of it."""

    trial: Trial
    policy: Policy
    stage: Stage
    handle: Any


class _Run:
    def __init__(
        self,
        problem: Problem,
        agent: Agent,
        pool: Pool,
        study: Study,
        max_evaluations: int,
        on_event: Callable[[Event], None],
        max_seconds: float,
        patience: int,
        ladder: Ladder,
        say: Callable[[str], None],
    ) -> None:
        self.problem, self.pool, self.study = problem, pool, study
        self.max_evaluations, self.max_seconds, self.patience = max_evaluations, max_seconds, patience
        self.on_event, self.say, self.ladder = on_event, say, ladder
        study.sampler = agent
        if ladder.rungs:
            study.pruner = ladder
        records = read_records(study)
        self.best = best_of(records)
        self.front = FrontVolume(problem.objective, problem.reference)
        self.front.add(records)
        self.evaluated = {r.number for r in records if r.evaluation.ok}
        self.complete = sum(r.score is not None for r in records)
        self.failed = len(records) - len(self.evaluated)
        self.failed_in_a_row = 0
        self.source = Source(problem, study)
        self.verdict = ladder.verdict(study)
        turns = (t.user_attrs[STAGE]["turn"] for t in study.get_trials(deepcopy=False) if STAGE in t.user_attrs)
        self.turn: int = max(turns, default=0)
        self.flight: deque[_Flying] = deque()
        self.start = perf_counter()

    @property
    def pruned(self) -> int:
        return len(self.evaluated) - self.complete

    @property
    def seconds(self) -> float:
        return perf_counter() - self.start

    @property
    def over(self) -> tuple[str, str]:
        """Why no other evaluation is to be begun, as a word and in words; two empty texts if one is."""
        if len(self.evaluated) + len(self.flight) >= self.max_evaluations:
            return "max_evaluations", f"all {self.max_evaluations} evaluations are done"
        if self.source.exhausted:
            return "exhausted", self.source.exhausted
        if self.seconds >= self.max_seconds and (self.evaluated or self.flight):
            return "max_time", f"the time is up after {len(self.evaluated)} evaluations"
        newest = self.front.newest  # without a trade-off the front is the best policy
        if self.patience and newest is not None:
            since = sum(number > newest for number in self.evaluated)
            if since >= self.patience:
                last = "the last on the front" if self.problem.tradeoff else "the best one"
                return "patience", f"{since} policies after {last}, number {newest}, were no better"
        return "", ""

    def fill(self) -> None:
        """Ask for and submit as many trials as the pool takes and the search still needs."""
        while len(self.flight) < self.pool.capacity and not self.source.empty:
            if self.over[0] not in ("", "exhausted"):
                return
            trial = self.source.next()
            if isinstance(trial, FrozenTrial):
                attributes = trial.user_attrs
                self.tell(trial.number, Evaluation.from_json(attributes["evaluation"]), "pruned" in attributes)
            elif trial is not None:
                self.send(trial)

    def send(self, trial: Trial) -> None:
        """Submit what is to be scored next of ``trial``: all samples, or those up to the rung that it stands before."""
        policy = self.problem.policy_of(trial.params)
        if not self.ladder.rungs:
            self.flight.append(_Flying(trial, policy, Stage(0, None), self.pool.submit(policy)))
            return
        attributes = trial.user_attrs
        if STAGE in attributes:
            stage = Stage.from_json(attributes[STAGE])
        else:
            stage = self.stage(trial, ())
        part = (stage.reached[-1] if stage.parts else 0, stage.until)
        self.flight.append(_Flying(trial, policy, stage, self.pool.submit(policy, part)))

    def stage(self, trial: Trial, parts: tuple[Evaluation, ...]) -> Stage:
        """The next stage of a trial that has ``parts`` behind it, written down."""
        self.turn += 1
        samples = sum(part.samples for part in parts)
        stage = Stage(self.turn, self.ladder.following(self.study, samples), parts)
        trial.set_user_attr(STAGE, stage.to_json())
        return stage

    def finish_oldest(self) -> None:
        """Hear the answer that was sent for first; tell it, or promote the trial to its next rung."""
        flying = self.flight.popleft()
        trial, stage = flying.trial, flying.stage
        part = self.checked(flying.policy, self.pool.result(flying.handle))
        if stage.until is not None:  # the rung says how many samples these were
            part = replace(part, samples=stage.until - (stage.reached[-1] if stage.parts else 0))
        evaluation = combined([*stage.parts, part])
        if stage.until is not None and evaluation.ok:
            if stage.until not in self.study._storage.get_trial(trial._trial_id).intermediate_values:
                trial.report(self.problem.objective.score(evaluation), stage.until)
            if not trial.should_prune():
                self.stage(trial, (*stage.parts, part))
                self.send(trial)
                return
            evaluation = replace(evaluation, fidelity=f"{evaluation.fidelity}:{evaluation.samples}")
            trial.set_user_attr("pruned", True)
        trial.set_user_attr("policy", policy_text(flying.policy))
        if self.problem.tradeoff and evaluation.ok:  # the study is told it on another scale
            trial.set_user_attr("score", self.problem.objective.score(evaluation))
        trial.set_user_attr("evaluation", evaluation.to_json())
        self.tell(trial.number, evaluation, "pruned" in trial.user_attrs)

    def checked(self, policy: Policy, evaluation: Evaluation) -> Evaluation:
        """The evaluation in plain JSON numbers, priced if the evaluator did not, and failed if it has no score."""
        scores: dict[str, Any] = {name: _finite(value) for name, value in evaluation.scores.items()}
        wanted = self.problem.objective.name
        error = evaluation.error
        if not error and scores[wanted] is None:
            error = f"the evaluation's {wanted} is {getattr(evaluation, wanted)}, not a number to search by"
        costs = {name: float(value) for name, value in evaluation.metrics.items()}
        excess = float(evaluation.violation)
        if not costs:
            costs = self.problem.costing.costs(policy)
            excess = violation(costs, self.problem.limits)
        lost = [metric for metric in self.problem.tradeoff if _finite(costs.get(metric)) is None]
        if not error and lost:
            error = f"the evaluation's {lost[0]} is {costs.get(lost[0])}, not a number to search by"
        return replace(evaluation, **scores, metrics=costs, violation=excess, error=error)

    def tell(self, number: int, evaluation: Evaluation, pruned: bool = False) -> None:
        if not evaluation.ok:
            told = self.study.tell(number, state=TrialState.FAIL)
        elif pruned:
            told = self.study.tell(number, state=TrialState.PRUNED)
        else:
            told = self.study.tell(number, self.problem.values(evaluation))
        record = record_of(told)
        if evaluation.ok:
            self.evaluated.add(number)
        self.complete += record.score is not None
        self.failed += not evaluation.ok
        self.failed_in_a_row = 0 if evaluation.ok else self.failed_in_a_row + 1
        self.best = best_of([r for r in (self.best, record) if r])
        self.front.add([record])
        if not self.verdict and (verdict := self.ladder.verdict(self.study)):
            self.verdict = verdict
            self.say(verdict)
        self.on_event(
            Event(
                record,
                self.best,
                self.complete,
                self.failed,
                self.max_evaluations,
                self.seconds,
                self.pruned,
                self.front if self.problem.tradeoff else None,
            )
        )
        if self.failed_in_a_row >= PATIENCE:
            raise SearchError(
                f"{PATIENCE} evaluations in a row failed, so the search stopped; the last one: {evaluation.error}"
            )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
