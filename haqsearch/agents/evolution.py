"""Evolution inside the budget: children are bred, and bits moved between variables, without ever leaving it.

A (mu + lambda) strategy with tournaments: the parents are the best ``population`` policies evaluated so far. Ageing,
which kills the oldest instead of the worst (regularized evolution: Real et al., AAAI 2019), guards against lucky
scores; a policy's score has no luck in it. (Measured, 100 evaluations: with ageing worse on sums of sensitivities, on
ResNet-20 worse in one budget and better in another.)

What makes it quick is where children land. A child that breaks the budget gives up bits in random variables, one that
leaves some of the budget unused takes bits in random variables, until no single bit more would fit: so a mutation is an
exchange of bits between layers on the budget's edge, where the best policies are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent
from haqsearch.agents.problem import Problem
from haqsearch.spec import Policy

LITTER = 20  # children of which the first is proposed that is new


@dataclass(eq=False, repr=False)
class Evolution(Agent):
    """Tournament selection, uniform crossover, exchanges of bits.

    population  >= 1, the best policies so far, from which parents are drawn
    tournament  >= 1, policies drawn for a parent, the best of which it is; 1: any of the population
    crossover   in [0, 1], chance of a second parent, which then gives every variable with chance 1/2
    moves       >= 0, mean number of variables changed beyond the first
    startup     >= 1, random policies on the budget's edge before there are parents
    """

    population: int = 10
    tournament: int = 4
    crossover: float = 0.5
    moves: float = 1.0
    startup: int = 10

    def __post_init__(self) -> None:
        self._highest = np.array([len(variable.candidates) - 1 for variable in self.problem.free])

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        rng = self.rng(trial)
        completed, taken = self.completed(study), self._taken(study, trial)
        for _ in range(LITTER):
            if len(completed) < self.startup:
                child = rng.integers(self._highest + 1)
            else:
                child = self._mutated(self._bred(completed, rng), rng)
            policy = to_the_edge(self.problem, child, rng)
            if self._key(policy) not in taken:
                break
        return policy  # if all are known, the base class finds something near the last

    def _bred(self, completed: list[FrozenTrial], rng: np.random.Generator) -> np.ndarray:
        """Candidate indices of a child of the population, by free variable."""
        population = sorted(completed, key=_score, reverse=True)[: self.population]  # stable: of equals the older

        def parent() -> np.ndarray:
            drawn = rng.integers(len(population), size=self.tournament)
            params = population[drawn.min()].params
            return np.array([params[variable.name] for variable in self.problem.free])

        child = parent()
        if rng.random() < self.crossover:
            child = np.where(rng.random(len(child)) < 0.5, parent(), child)
        return child

    def _mutated(self, child: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Some variables changed: half of them by one step, half to any other candidate."""
        count = min(1 + rng.poisson(self.moves), len(child))
        for position in rng.choice(len(child), size=count, replace=False):
            highest = self._highest[position]
            if rng.random() < 0.5:
                step = 1 if rng.random() < 0.5 else -1
                child[position] = min(max(child[position] + step, 0), highest)
            else:
                child[position] = (child[position] + rng.integers(1, highest + 1)) % (highest + 1)
        return child


def to_the_edge(problem: Problem, indices: np.ndarray, rng: np.random.Generator) -> Policy:
    """The policy of candidate ``indices`` [free variables], with bits taken and given at random until the budget is full.

    First down: random variables give up a step as long as a limit is broken and the step lowers the violation. Where no
    step does, the policy is returned as it is, for the base class to repair. Then up: variables in random order take a
    step where the policy stays inside, round after round until none can.
    """
    indices = indices.copy()
    names = [variable.name for variable in problem.free]
    highest = [len(variable.candidates) - 1 for variable in problem.free]

    def policy() -> Policy:
        return problem.policy_of(dict(zip(names, indices, strict=True)))

    excess = problem.violation(policy())
    while excess > 0:
        before = excess
        for position in rng.permutation(len(indices)):
            if indices[position] == 0:
                continue
            indices[position] -= 1
            lower = problem.violation(policy())
            if lower < excess:
                excess = lower
                break
            indices[position] += 1
        if excess == before:
            return policy()
    moved = True
    while moved:
        moved = False
        for position in rng.permutation(len(indices)):
            if indices[position] == highest[position]:
                continue
            indices[position] += 1
            if problem.feasible(policy()):
                moved = True
            else:
                indices[position] -= 1
    return policy()


def _score(trial: FrozenTrial) -> float:
    assert trial.value is not None, "completed trials have a score"
    return trial.value
