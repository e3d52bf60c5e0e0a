"""Where the trials of a search come from: what a killed process left unfinished, then the agent."""

from __future__ import annotations

from collections import deque
from math import inf

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from haqsearch.agents.base import SpaceExhausted
from haqsearch.agents.problem import Problem
from haqsearch.search.ladder import STAGE

_EXHAUSTED = "exhausted"


class Source:
    """The trials that are to be evaluated, one after another. ``exhausted`` says why there is no other, once there is none."""

    def __init__(self, problem: Problem, study: Study) -> None:
        self.problem, self.study = problem, study
        self.exhausted: str = study.user_attrs.get(_EXHAUSTED, "")
        left = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self._unfinished = deque(sorted(left, key=_turn))

    @property
    def empty(self) -> bool:
        return not self._unfinished and bool(self.exhausted)

    def next(self) -> Trial | FrozenTrial | None:
        """A trial to evaluate; or one whose evaluation is on disk (``user_attrs``), but not told; or None: nothing came of it."""
        if not self._unfinished:
            return self._ask()
        left = self._unfinished.popleft()
        return left if "evaluation" in left.user_attrs else self._take_up(left)

    def _ask(self) -> Trial | None:
        """A new trial with all its parameters on disk, or None at the end of the space."""
        try:
            trial = self.study.ask(self.problem.distributions)
            _ = trial.relative_params  # a space with nothing free suggests nothing; the agent is asked all the same
        except SpaceExhausted as end:
            self._end(len(self.study.get_trials(deepcopy=False)) - 1, end)
            return None
        return trial

    def _take_up(self, left: FrozenTrial) -> Trial | None:
        """A trial that a killed process left running, ready to be evaluated; None if nothing of it is left to do.

        One killed while its parameters were written is asked again: the study is as it was, so the agent answers as
        it did.
        """
        trial = Trial(self.study, left._trial_id)
        if "proposal" in left.user_attrs and len(left.params) == len(self.problem.distributions):
            return trial
        try:
            again = trial.relative_params
        except SpaceExhausted as end:
            self._end(left.number, end)
            return None
        if any(again[name] != value for name, value in left.params.items()):  # another version of the agent began it
            self.study.tell(left.number, state=TrialState.FAIL)
            return None
        for variable in self.problem.free:
            trial.suggest_int(variable.name, 0, len(variable.candidates) - 1)
        return trial

    def _end(self, number: int, why: SpaceExhausted) -> None:
        """Close the trial that was opened in vain, and remember that there is nothing left."""
        self.exhausted = str(why)
        self.study.set_user_attr(_EXHAUSTED, self.exhausted)
        self.study.tell(number, state=TrialState.FAIL)


def _turn(trial: FrozenTrial) -> float:
    """When a trial was last sent to the pool; one that never was comes last."""
    return float(trial.user_attrs[STAGE]["turn"]) if STAGE in trial.user_attrs else inf
