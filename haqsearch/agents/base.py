"""The base of every agent: an Optuna sampler whose every proposal is inside the budget and new."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from haqsearch.agents.problem import ENUMERABLE, Key, Problem
from haqsearch.agents.repair import repair, take_free_bits
from haqsearch.errors import SearchError
from haqsearch.spec import Policy

TRIES = 200  # perturbations before an agent gives up on finding a policy that is new


class SpaceExhausted(SearchError):
    """Every policy that the agent could propose has been: the natural end of a search in a small space."""


@dataclass(eq=False, repr=False)
class Agent(BaseSampler):
    """Proposes policies. Write one by subclassing and implementing ``propose``; nothing else is needed.

    The life of a trial: ``study.ask`` creates it and calls ``sample_relative`` once. The first trials are given to the
    uniform policies that fit, so that no search ends below them, and to the problem's warm starts; every later one asks
    ``propose``. The proposal is
    repaired into the budget, given the bits that cost nothing, and perturbed if that policy is known already. The
    trial's parameters are thus the policy that is evaluated, and its user attributes ``proposal`` and ``source`` say
    what was wished for, and by whom.

    Two rules make a killed search continue exactly as if it had not been: randomness comes from ``self.rng(trial)``
    only, and whatever an agent remembers is a function of the study's finished trials (``self.completed(study)``).

    problem          what is searched
    seed             >= 0; the same seed, study and worker count give the same search
    max_evaluations  how long the search will be, for agents with a schedule; None: unknown

    Options of an agent's own are further fields of a dataclass, or arguments of its ``__init__``.

    An agent that can trade the objective off against metrics (``problem.tradeoff``) says so: ``several_objectives``. Its
    trials then have a list of ``values``, the score on its even scale first (``problem.values``), and no ``value``.
    """

    problem: Problem
    seed: int = 0
    max_evaluations: int | None = None

    several_objectives = False
    needs_sensitivity = False  # whether it adds up ``problem.sensitivity``

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        """Next policy wished for, in the space but not necessarily in the budget. May raise SpaceExhausted."""

    @property
    def name(self) -> str:
        """What the trials this agent proposed are marked with (``source``)."""
        return type(self).__name__.lower()

    def rng(self, trial: FrozenTrial) -> np.random.Generator:
        """The randomness of one trial: it depends on the seed and the trial's number alone."""
        return np.random.default_rng([self.seed, trial.number])

    def drawn(self, rng: np.random.Generator) -> Policy:
        """Every candidate of every variable with equal chance."""
        return self.problem.policy_of({v.name: rng.integers(len(v.candidates)) for v in self.problem.free})

    @staticmethod
    def completed(study: Study) -> list[FrozenTrial]:
        """Trials with a score, by number. The score is to be made large: ``trial.value``, or in a trade-off ``trial.values[0]``,
        where it stands on its even scale.
        """
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    # Optuna's side.

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.problem.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        start, problem = process_time(), self.problem
        openings = problem.openings
        opening = openings[trial.number] if trial.number < len(openings) else None
        proposal = opening.wish if opening else self.propose(study, trial)
        # An opening stays as it is; what an agent proposes also takes the bits that cost nothing.
        wish = opening.policy if opening else proposal
        policy = self._new(wish, self._taken(study, trial), trial, free_bits=opening is None)
        attributes = {
            "source": opening.source if opening else self.name,
            "proposal": {layer: str(choice) for layer, choice in proposal.items()},
            "thinking_s": round(process_time() - start, 4),  # of the processor
        }
        for key, value in attributes.items():  # first, so that a trial with all its parameters has these too
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        return problem.params_of(policy)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise SearchError(
            f"parameter {param_name!r} is not a variable of this search; "
            "ask with study.ask(problem.distributions) and an agent of the same problem"
        )

    # Newness.

    def _taken(self, study: Study, trial: FrozenTrial) -> set[Key]:
        """Policies of all other trials: finished, running, and failed too (they would fail again)."""
        names = [variable.name for variable in self.problem.free]
        others = (t.params for t in study.get_trials(deepcopy=False) if t.number != trial.number)
        return {tuple(params[name] for name in names) for params in others if len(params) == len(names)}

    def _key(self, policy: Policy) -> Key:
        return tuple(self.problem.params_of(policy).values())

    def _new(self, proposal: Policy, taken: set[Key], trial: FrozenTrial, free_bits: bool) -> Policy:
        """The proposal brought inside the budget; the nearest thing to it that is new, if that is known already."""
        problem = self.problem
        fallback = problem.known_feasible

        def inside(wish: Policy) -> Policy:
            policy = repair(problem, wish, fallback)
            return take_free_bits(problem, policy) if free_bits else policy

        policy = inside(proposal)
        if self._key(policy) not in taken:
            return policy
        if problem.space.size <= ENUMERABLE:
            return self._nearest(policy, taken)
        # Mutants of the proposal keep its character; mutants of the repaired policy still move when the budget is so
        # tight that every proposal is repaired into the same few policies. More variables change as tries go by.
        rng = np.random.default_rng([self.seed, trial.number, 1])
        for attempt in range(TRIES):
            parent = proposal if attempt % 2 else policy
            mutant = inside(self._mutate(parent, 1 + attempt // 20, rng))
            if self._key(mutant) not in taken:
                return mutant
        raise SpaceExhausted(
            f"{TRIES} changes of a policy met only policies already evaluated: the budget leaves few others"
        )

    def _mutate(self, policy: Policy, count: int, rng: np.random.Generator) -> Policy:
        params = self.problem.params_of(policy)
        free = self.problem.free
        for position in rng.choice(len(free), size=min(count, len(free)), replace=False):
            variable = free[position]
            step = int(rng.integers(1, len(variable.candidates)))  # never 0: the index moves, around the end if need be
            params[variable.name] = (params[variable.name] + step) % len(variable.candidates)
        return self.problem.policy_of(params)

    def _nearest(self, policy: Policy, taken: set[Key]) -> Policy:
        """The feasible policy not taken whose indices differ least (sum of steps); of equals the first in order."""
        problem = self.problem
        target = problem.space.indices(policy)
        free = [i for i, variable in enumerate(problem.space.variables) if len(variable.candidates) > 1]
        left = [key for key in problem.feasible_keys if tuple(key[i] for i in free) not in taken]
        if not left:
            raise SpaceExhausted(f"all {len(problem.feasible_keys)} policies inside the budget have been evaluated")
        return problem.space.policy(min(left, key=lambda key: _distance(key, target)))


def _distance(a: Iterable[int], b: Iterable[int]) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
