"""Successive halving inside a search: every policy is scored on few samples first, and only the better ones on all.

Written as an Optuna pruner. Optuna's own ``SuccessiveHalvingPruner`` notes its verdicts in the trial before anybody
has heard them, so that a search killed in between promotes what it should have pruned; and its rungs are powers of a
number. The rule is the same (Jamieson and Talwalkar, AISTATS 2016; asynchronous: Li et al., MLSys 2020, algorithm 2).

Recipes have no rungs by default. ResNet-20 at 0.4 of int8's latency on bismo-edge, 1,000 search images, three seeds, 30 s
of one core each: a rung of 250 images spares a pruned policy 108 of its 145 ms. ``random`` then scores 33 to 48 % more
policies and finds none that is better; an agent that learns proposes few that are pruned: ``tpe`` scores 6 to 10 % more,
its best KL is 6 % lower, equal, and 0.4 % lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from haqsearch.spec import Evaluation

STAGE = "stage"  # user attribute of a trial: where it stands on the ladder


@dataclass(frozen=True)
class Ladder(BasePruner):
    """The rungs of a search. Everything it says is a function of the study's trials, so a resumed search repeats it.

    rungs              samples of the search split scored first, increasing; empty: every policy is scored on all
    reduction          >= 2: one policy in so many is promoted, by its rank among all that reached the rung so far
    trial_run          >= 2: policies that go all the way unpruned, to see which rungs can be believed
    least_correlation  of Spearman's rank correlation between a rung and the next over the trial run; below it the rung
                       is dropped for the rest of the search

    The uniform baselines are never pruned: the result is compared with them.
    """

    rungs: tuple[int, ...] = ()
    reduction: int = 2
    trial_run: int = 8
    least_correlation: float = 0.8

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether ``trial``, whose score on so many samples was just reported (``trial.report``), ends here."""
        step = trial.last_step
        if step is None or trial.user_attrs.get("source") == "uniform" or not self.correlations(study):
            return False
        if step not in self.kept(study):
            return False
        reached = [
            t.intermediate_values[step] for t in study.get_trials(deepcopy=False) if step in t.intermediate_values
        ]
        better = sum(score > trial.intermediate_values[step] for score in reached)
        return better >= max(len(reached) // self.reduction, 1)

    def following(self, study: Study, samples: int) -> int | None:
        """The next rung for a policy scored on ``samples`` samples so far; None: all samples."""
        return next((rung for rung in self.kept(study) if rung > samples), None)

    def kept(self, study: Study) -> tuple[int, ...]:
        """The rungs still in use: all of them until the trial run is over."""
        correlations = self.correlations(study)
        return tuple(r for r in self.rungs if not correlations or correlations[r] >= self.least_correlation)

    def correlations(self, study: Study) -> dict[int, float]:
        """Spearman's rho, by rung, with the next rung that is kept (or all samples) over the trial run; empty before its end.

        A rung on which all policies score the same predicts nothing: 0.
        """
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        run = [t for t in complete if all(rung in t.intermediate_values for rung in self.rungs)][: self.trial_run]
        if not self.rungs or len(run) < self.trial_run:
            return {}
        found: dict[int, float] = {}
        following = [float(t.value or 0.0) for t in run]
        for rung in reversed(self.rungs):
            scores = [t.intermediate_values[rung] for t in run]
            found[rung] = _spearman(scores, following)
            if found[rung] >= self.least_correlation:
                following = scores
        return dict(sorted(found.items()))

    def verdict(self, study: Study) -> str:
        """What the trial run showed, in a sentence a rung; empty before its end."""
        kept = self.kept(study)
        return "; ".join(
            f"rung of {rung} samples {'kept' if rung in kept else 'dropped'}: over {self.trial_run} policies its rank "
            f"correlation with the next is {rho:.2f} (at least {self.least_correlation:g} is asked)"
            for rung, rho in self.correlations(study).items()
        )

    def summary(self, study: Study) -> dict[str, Any]:
        """Plain JSON: per rung the policies scored and pruned there, the seconds that took, and what the trial run showed.

        ``samples`` of the last rung is None: the whole search split. ``correlation`` is None before the trial run's end.
        """
        correlations, kept = self.correlations(study), self.kept(study)
        levels: list[int | None] = [*self.rungs, None]
        rows = {n: {"samples": n, "scored": 0, "pruned": 0, "seconds": 0.0} for n in levels}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            total = Evaluation.from_json(trial.user_attrs["evaluation"])
            stage = Stage.from_json(trial.user_attrs[STAGE]) if STAGE in trial.user_attrs else Stage(0, None)
            seconds = [part.seconds for part in stage.parts]
            for level, spent in zip(
                [*stage.reached, stage.until], [*seconds, total.seconds - sum(seconds)], strict=True
            ):
                rows[level]["scored"] += 1  # type: ignore[operator]
                rows[level]["seconds"] += spent  # type: ignore[operator]
            rows[stage.until]["pruned"] += trial.state == TrialState.PRUNED  # type: ignore[operator]
        for level in self.rungs:
            rows[level] |= {"correlation": correlations.get(level), "kept": level in kept}
        return {
            "reduction": self.reduction,
            "trial_run": self.trial_run,
            "least_correlation": self.least_correlation,
            "rungs": list(rows.values()),
        }


@dataclass(frozen=True)
class Stage:
    """Where a trial stands: ``parts`` of the search split are scored, and it is being scored ``until`` (None: the end).

    ``turn`` counts the submissions of the whole search: a resumed search takes trials up in the order it left them.
    """

    turn: int
    until: int | None
    parts: tuple[Evaluation, ...] = ()

    @property
    def reached(self) -> tuple[int, ...]:
        """Samples scored after each part."""
        return tuple(sum(p.samples for p in self.parts[: i + 1]) for i in range(len(self.parts)))

    def to_json(self) -> dict[str, Any]:
        return {"turn": self.turn, "until": self.until, "parts": [part.to_json() for part in self.parts]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stage:
        return cls(data["turn"], data["until"], tuple(Evaluation.from_json(part) for part in data["parts"]))


def combined(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of the samples of all ``parts``: means weighted by samples, seconds added up.

    A failed part fails the whole. What one part lacks (accuracy, say) the whole lacks.
    """
    last, samples = parts[-1], sum(part.samples for part in parts)
    seconds = sum(part.seconds for part in parts)
    if len(parts) == 1 or not last.ok:
        return replace(last, seconds=seconds)

    def mean(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        return float(sum(v * part.samples for v, part in zip(values, parts, strict=True)) / samples)

    means: dict[str, Any] = {name: mean(name) for name in last.scores}
    return replace(last, **means, samples=samples, seconds=seconds)


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(spearmanr(a, b).statistic)
