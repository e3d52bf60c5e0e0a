"""NSGA-III, Optuna's own (Deb and Jain, IEEE Transactions on Evolutionary Computation 2014): a front, spread evenly."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseGASampler, NSGAIIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent
from haqsearch.spec import Policy


@dataclass(eq=False, repr=False)
class NSGA3(Agent):
    """Generations of policies: the best fronts survive, of the last one those in the emptiest directions; they cross and mutate.

    population  >= 2, trials of a generation; None: a fifth of ``max_evaluations``, or with one objective a twelfth, 8 to 50. The
                search's openings belong to the first generation, which is random otherwise.
    swap        chance in [0, 1] that a child of two takes a variable from the second
    """

    population: int | None = None
    swap: float = 0.5

    several_objectives = True

    def __post_init__(self) -> None:
        generations = 5 if self.problem.tradeoff else 12  # a front has to be spread; one best policy needs descendants
        self._size = self.population or min(max((self.max_evaluations or 250) // generations, 8), 50)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if trial.number < len(self.problem.openings):  # Optuna counts only trials that are marked
            key = self._sampler(0)._get_generation_key()
            study._storage.set_trial_system_attr(trial._trial_id, key, 0)
        return super().sample_relative(study, trial, search_space)

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        rng = self.rng(trial)
        sampler = self._sampler(int(rng.integers(2**31)))
        # Survivors are drawn once a generation and then kept in the study, a child is drawn for every trial: by generators
        # of their own, for a search that was killed in between finds the survivors there and draws the child alone.
        for generation in range(1, sampler.get_trial_generation(study, trial) + 1):
            drawn = np.random.default_rng([self.seed, generation, 3]).integers(2**31)
            self._sampler(int(drawn)).get_parent_population(study, generation)
        params = sampler.sample_relative(study, trial, self.problem.distributions)
        random = self.problem.params_of(self.drawn(rng))
        return self.problem.policy_of(random | params)  # what mutates is missing in params, as is all in the beginning

    def _sampler(self, seed: int) -> BaseGASampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return NSGAIIISampler(population_size=self._size, swapping_prob=self.swap, seed=seed)
