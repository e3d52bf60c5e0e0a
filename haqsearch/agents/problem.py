"""What a search is asked to solve: a space, what its policies cost, the limits, and the quantities to improve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from haqsearch.errors import BudgetError, SearchError
from haqsearch.spec import (
    Choice,
    Costing,
    Evaluation,
    LayerSpec,
    Limit,
    Objective,
    Policy,
    SearchSpace,
    Sensitivity,
    Variable,
    front,
    violation,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ENUMERABLE = 4096  # policies; smaller spaces are listed whole instead of being sampled

Direction = Literal["minimize", "maximize"]
Key = tuple[int, ...]  # a policy as one candidate index per variable of the space


@dataclass(frozen=True)
class Opening:
    """A policy that a search begins with: where it is from, what was wished for, and what the budget made of it."""

    source: str
    wish: Policy
    policy: Policy


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything an agent knows. Optuna sees it as one integer per free variable, few bits to many.

    space      the policies there are; a pinned layer has one candidate and hence no Optuna parameter
    costing    prices a whole policy (``hwmodels.Meter``); it need be neither additive nor monotone
    limits     all have to be met; none is allowed
    objective  its ``score`` is what a search makes large
    warm_starts  policies from elsewhere that every search looks at first; they need not be in the space nor the budget
    tradeoff   metrics to be made small together with the objective: then there is a front of policies, no single best
    measure    measures the sensitivity table that exact solvers add up; called once, and only if an agent asks for it
    """

    space: SearchSpace
    costing: Costing
    limits: tuple[Limit, ...]
    objective: Objective
    warm_starts: tuple[Policy, ...] = ()
    tradeoff: tuple[str, ...] = ()
    measure: Callable[[], Sensitivity] | None = None

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """What each decision alone does to the objective, or to a stand-in for it: ratios count, not the unit.

        Raises SearchError if nobody can measure it here.
        """
        if self.measure is None:
            raise SearchError(
                "this agent adds up a sensitivity table, and the problem has none: give Problem(measure=...), a function that "
                "returns a haqsearch.spec.Sensitivity"
            )
        return self.measure().check(self.space)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of the numbers that a trial is told, as an Optuna study takes them: the score's, then the trade-off's."""
        small: Direction = "minimize"
        return ("maximize", *[small] * len(self.tradeoff))

    def values(self, evaluation: Evaluation) -> list[float]:
        """What a study is told of an evaluation, in that order. Raises KeyError if a metric of the trade-off is missing.

        In a trade-off the score stands on its even scale (``Objective.even``): fronts are the same, but what spreads a search
        along them - hypervolume, crowding, niches - would else see nothing but the broken policies at their cheap end.
        """
        score = self.objective.score(evaluation)
        if not self.tradeoff:
            return [score]
        return [self.objective.even(score), *(evaluation.metrics[metric] for metric in self.tradeoff)]

    @property
    def counted(self) -> tuple[str, ...]:
        """The metrics that count: of the trade-off and of the limits, each once. The others may be as large as they like."""
        return tuple(dict.fromkeys((*self.tradeoff, *(limit.metric for limit in self.limits))))

    @cached_property
    def reference(self) -> dict[str, float]:
        """Costs worth no more than having met them, by metric of the trade-off: its lowest limit, or all layers at 8/8."""
        int8 = self.costing.costs(Policy.uniform(self.space.model, Choice.parse("w8a8"))) if self.tradeoff else {}
        return {
            metric: min((limit.value for limit in self.limits if limit.metric == metric), default=int8[metric])
            for metric in self.tradeoff
        }

    @cached_property
    def free(self) -> tuple[Variable, ...]:
        """The variables with a choice to make, in network order, weight before activation."""
        return tuple(variable for variable in self.space.variables if len(variable.candidates) > 1)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's view: per free variable an index into its candidates, 0 .. n - 1, ordered from few bits to many."""
        from optuna.distributions import IntDistribution

        return {variable.name: IntDistribution(0, len(variable.candidates) - 1) for variable in self.free}

    def policy_of(self, params: Mapping[str, Any]) -> Policy:
        """Policy that Optuna parameters name. Raises KeyError if one is missing."""
        return self.space.policy(
            [int(params[variable.name]) if len(variable.candidates) > 1 else 0 for variable in self.space.variables]
        )

    def params_of(self, policy: Policy) -> dict[str, int]:
        """Inverse of ``policy_of``. Raises PolicyError if a format is not a candidate."""
        indices = self.space.indices(policy)
        return {
            variable.name: index
            for variable, index in zip(self.space.variables, indices, strict=True)
            if len(variable.candidates) > 1
        }

    def violation(self, policy: Policy) -> float:
        """Sum of the fractions by which limits are exceeded: 0.0 exactly when all are met."""
        return violation(self.costing.costs(policy), self.limits)

    def feasible(self, policy: Policy) -> bool:
        return self.violation(policy) == 0.0

    @cached_property
    def uniform_fits(self) -> tuple[Policy, ...]:
        """Baselines: one width pair on all free layers, inside the limits, none narrower than another in both.

        In a trade-off narrow ones have their place: all that no other beats in the costs and in the noise to be expected
        of its widths, 4^-bits.
        """
        fitting = {self.space.indices(p): p for p in self.space.uniform() if self.feasible(p)}
        if self.tradeoff:
            policies = list(fitting.values())
            return tuple(policies[i] for i in front([self._prospect(policy) for policy in policies]))
        return tuple(
            policy
            for key, policy in fitting.items()
            if not any(other != key and all(o >= k for o, k in zip(other, key, strict=True)) for other in fitting)
        )

    def _prospect(self, policy: Policy) -> tuple[float, ...]:
        """What can be known of a policy before it is evaluated, all to be small: noise of its widths, and its costs."""
        params, costs = self.params_of(policy), self.costing.costs(policy)
        noise = sum(4.0 ** -variable.candidates[params[variable.name]].bits for variable in self.free)
        return noise, *(costs[metric] for metric in self.tradeoff)

    @cached_property
    def openings(self) -> tuple[Opening, ...]:
        """What every search begins with, each policy once: the uniform baselines, then the warm starts.

        A warm start is moved to the nearest candidates of the space (of the least difference in bits) and, if it exceeds
        a limit, repaired into the budget. Raises BudgetError if one has to be repaired and nothing is inside the budget.
        """
        from haqsearch.agents.repair import repair

        found = {policy: Opening("uniform", policy, policy) for policy in self.uniform_fits}
        for given in self.warm_starts:
            wish = self.space.nearest(given)
            policy = wish if self.feasible(wish) else repair(self, wish, self.known_feasible)
            found.setdefault(policy, Opening("warm_start", wish, policy))
        return tuple(found.values())

    @cached_property
    def known_feasible(self) -> Policy:
        """A policy inside every limit: a uniform one, else the narrowest, else what a sweep from a uniform one reaches.

        Raises BudgetError with the least violation met, when none of these is feasible.
        """
        from haqsearch.agents.repair import sweep

        if self.uniform_fits:
            return self.uniform_fits[0]
        narrowest = self.space.policy([0] * len(self.space.variables))
        starts = [narrowest, *self.space.uniform()]
        reached = [sweep(self, start) for start in starts]
        best = min(reached, key=self.violation)
        if self.feasible(best):
            return best
        costs = self.costing.costs(best)
        wanted = "; ".join(
            f"{limit.text or limit.metric} (limit {limit.value:.6g}, reached {costs[limit.metric]:.6g})"
            for limit in self.limits
            if not limit.met(costs)
        )
        raise BudgetError(
            f"no policy of the search space was found inside the budget: {wanted}. Allow fewer bits, or raise the limit"
        )

    @cached_property
    def feasible_keys(self) -> tuple[Key, ...]:
        """Every policy inside the limits, as indices. ValueError if the space has more than ``ENUMERABLE`` policies."""
        if self.space.size > ENUMERABLE:
            raise ValueError(f"a space of {self.space.size} policies is too large to list")
        sizes = [len(variable.candidates) for variable in self.space.variables]
        keys = (tuple(int(i) for i in key) for key in np.ndindex(*sizes))
        return tuple(key for key in keys if self.feasible(self.space.policy(key)))

    @cached_property
    def layer_features(self) -> np.ndarray:
        """HAQ's eight static features per free variable, [variable, 8], each min-max scaled over the layers to [0, 1].

        depthwise, input channels, output channels, stride, kernel, weights, input pixels, layer index (HAQ,
        linear_quantize_env.py:272-302). A tied activation takes the features of the first layer that reads it. Columns
        that are constant become 0; HAQ leaves them raw, which only shifts the network's bias.
        """
        layers = self.space.model.quantizable
        table = np.array([[*_features(layer), index] for index, layer in enumerate(layers)], dtype=np.float64)
        low, span = table.min(axis=0), np.ptp(table, axis=0)
        scaled = (table - low) / np.where(span > 0, span, 1.0)
        row = {layer.name: index for index, layer in enumerate(layers)}
        return scaled[[row[variable.layers[0]] for variable in self.free]]


def _features(layer: LayerSpec) -> list[float]:
    in_channels = layer.weight_shape[1] * layer.groups
    depthwise = float(layer.groups > 1 and layer.groups == in_channels)
    pixels = layer.in_elements / max(in_channels, 1)
    return [depthwise, in_channels, layer.out_channels, layer.stride[0], layer.kernel[0], layer.weight_count, pixels]
