"""A device bound to a network: what a policy costs, the least any policy can cost, and whether a budget can be met."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp

from haqsearch.errors import BudgetError
from haqsearch.spec import METRICS, Choice, Format, LayerSpec, Limit, ModelSpec, Policy, SearchSpace
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import memory
from hwmodels.base import HardwareModel, LayerCost, candidates

PEAK = "peak_activation_bytes"
_INT8 = Choice(Format("int", 8), Format("uint", 8))


@dataclass(frozen=True)
class Holder:
    """What no policy can make cheaper: a layer (or activation buffer) with one candidate, its cost in base units, and
    the ``share`` in [0, 1] that it has in the least reachable value; ``why`` it has one candidate."""

    name: str
    value: float
    share: float
    why: str


@dataclass(frozen=True)
class Least:
    """Least ``value`` of a metric over a search space, a policy that reaches it, and its holders, largest first."""

    value: float
    policy: Policy
    holders: tuple[Holder, ...]


class Meter:
    """Prices whole policies of ``model`` on ``device`` for batches of ``batch`` samples; a ``haqsearch.spec.Costing``.

    Costs of a layer are computed once per choice. The device's metrics come first; size, bit operations and peak
    activation memory, of the widths that it stores, are added unless it has its own idea of them. ``additive`` are the
    metrics that are sums over the layers.
    """

    def __init__(self, device: HardwareModel, model: ModelSpec, batch: int | None = None) -> None:
        self.device, self.model = device.bind(model), model
        self.batch = device.default_batch if batch is None else batch
        self._activations = memory.ActivationMemory.of(model)
        self._known: list[dict[Choice, LayerCost]] = [{} for _ in model]
        self._stored: list[dict[Choice, Choice]] = [{} for _ in model]
        self._layer_metrics = tuple(dict.fromkeys((*device.metrics, *memory.ADDITIVE)))
        self._index = {layer.name: i for i, layer in enumerate(model)}
        self.additive = {*device.additive, *(m for m in memory.ADDITIVE if m not in device.metrics)}

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.device.metrics, *memory.METRICS)))

    def costs(self, policy: Policy) -> dict[str, float]:
        """Every metric of the network under ``policy``, in base units, latency and energy for one batch.

        Raises PolicyError if the policy lacks a layer, HardwareError if the device does not support a choice.
        """
        layers = [cost.values for _, cost in self.layer_costs(policy)]
        found = {}
        for metric in self._layer_metrics:
            values = [cost[metric] for cost in layers]
            found[metric] = float(sum(values) if metric in self.additive else self.device.total(metric, values))
        if PEAK not in found:
            found[PEAK] = self._activations.peak(self.stored(policy))
        return found

    def stored(self, policy: Policy) -> Policy:
        """``policy`` in the widths that the device's memory holds."""
        return Policy({layer.name: self._held(i, policy[layer.name]) for i, layer in enumerate(self.model)})

    def _held(self, index: int, choice: Choice) -> Choice:
        known = self._stored[index]
        if choice not in known:
            known[choice] = self.device.stored(self.model.layers[index], choice.computed)
        return known[choice]

    def layer_costs(self, policy: Policy) -> list[tuple[LayerSpec, LayerCost]]:
        """Cost of every layer in network order, its ``size_bytes`` and ``bops`` included. Raises as ``costs`` does."""
        try:
            choices = [policy[layer.name] for layer in self.model.layers]
        except KeyError:
            policy.check(self.model)  # raises, and says which layer is missing
            raise
        return [
            (layer, self._cost(i, choice)) for i, (layer, choice) in enumerate(zip(self.model, choices, strict=True))
        ]

    def layer_cost(self, layer: str, choice: Choice) -> LayerCost:
        """Cost of one layer under ``choice``, its ``size_bytes`` and ``bops`` included. Raises HardwareError as ``costs``."""
        return self._cost(self._index[layer], choice)

    def layer_values(self, layer: str, choice: Choice) -> Mapping[str, float]:
        """The numbers of ``layer_cost`` alone."""
        return self.layer_cost(layer, choice).values

    def _cost(self, index: int, choice: Choice) -> LayerCost:
        known = self._known[index]
        if choice not in known:
            layer = self.model.layers[index]
            cost = self.device.cost(layer, choice.computed, self.batch)
            held = memory.layer_values(layer, choice, self._held(index, choice))
            known[choice] = replace(cost, values={**held, **cost.values})
        return known[choice]

    def int8(self) -> dict[str, float]:
        """Costs of the policy that budgets are relative to: 8-bit weights and activations, float32 where it must be."""
        return self.costs(Policy.uniform(self.model, _INT8))

    def least(self, space: SearchSpace) -> dict[str, Least]:
        """Exact least value of every metric over ``space``, each with a policy that reaches it.

        Metrics of the device that are not additive are left out: their least value is not known without a search.
        """
        found = {}
        for metric in self.metrics:
            if metric in self.additive:
                policy = self._cheapest(space, lambda i, choice, m=metric: self._cost(i, choice).values[m])  # type: ignore[misc]
            elif metric == PEAK and PEAK not in self.device.metrics:
                # Fewer bits shrink some buffers and grow none.
                policy = space.policy([0] * len(space.variables))
            else:
                continue
            value = self.costs(policy)[metric]
            found[metric] = Least(value, policy, self._holders(space, policy, metric, value))
        return found

    def _cheapest(self, space: SearchSpace, price: Callable[[int, Choice], float]) -> Policy:
        """Policy with the least sum of ``price(layer index, choice)``; at equal price the one with fewest bits.

        Layers couple only through a shared activation, so each tie is minimised alone: over the activation formats,
        the sum over its layers of the best weight format.
        """
        weights = {v.layers[0]: v.candidates for v in space.variables if v.role == "weight"}
        taken: dict[str, Choice] = {}
        for variable in space.variables:
            if variable.role != "activation":
                continue
            options = []
            for activation in variable.candidates:
                picks = {}
                total = 0.0
                for name in variable.layers:
                    priced = [
                        (price(self._index[name], Choice(w, activation)), Choice(w, activation)) for w in weights[name]
                    ]
                    cost, picks[name] = min(priced, key=lambda pair: pair[0])
                    total += cost
                options.append((total, picks))
            taken.update(min(options, key=lambda option: option[0])[1])
        return Policy({layer.name: taken.get(layer.name, FLOAT_CHOICE) for layer in self.model})

    def _holders(self, space: SearchSpace, policy: Policy, metric: str, value: float) -> tuple[Holder, ...]:
        fixed = {name: str(only[0]) for name, only in candidates(space).items() if len(only) == 1}
        why = {name: text if self.model[name].quantizable else "stays in float32" for name, text in fixed.items()}
        if metric == PEAK:
            # Buffers of a fixed width belong to no layer's choice at all.
            buffers = self._activations.at_peak(self.stored(policy), lambda b: not b.format_of or b.format_of in fixed)
            held = [(b.name, float(size), why.get(b.format_of, f"fixed at {b.bits} bits")) for b, size in buffers]
        else:
            costs = self.layer_costs(policy)
            held = [(layer.name, cost.values[metric], why[layer.name]) for layer, cost in costs if layer.name in why]
        holders = [Holder(name, cost, cost / value if value else 0.0, text) for name, cost, text in held]
        return tuple(sorted(holders, key=lambda holder: -holder.value))

    def check_reachable(self, space: SearchSpace, limits: Sequence[Limit]) -> None:
        """Raises BudgetError if a limit, or provably all of them together, cannot be met in ``space``.

        Limits that are reachable one by one but not refuted together pass: to settle those is what a search is for.
        """
        for limit in limits:
            if limit.metric not in self.metrics:
                known = ", ".join(self.metrics)
                raise BudgetError(f"budget {limit.text!r}: {self.device.name} has no {limit.metric}; it knows {known}")
        least = self.least(space)
        for limit in limits:
            if limit.metric in least and not limit.met({limit.metric: least[limit.metric].value}):
                raise BudgetError(self._unreachable(limit, least[limit.metric]))
        if len(limits) > 1 and not any(_all_met(limits, self.costs(one.policy)) for one in least.values()):
            self._check_together(space, limits)

    def _unreachable(self, limit: Limit, least: Least) -> str:
        text = (
            f"budget {limit.text!r} ({quantity(limit.metric, limit.value)}) cannot be met: the least reachable "
            f"{limit.metric} on {self.device.name} is {quantity(limit.metric, least.value)}"
        )
        if not least.holders:
            return f"{text}, and nothing is pinned; allow fewer bits or raise the budget"
        shown = [f"{h.name} {quantity(limit.metric, h.value)} ({h.why}, {h.share:.0%})" for h in least.holders[:4]]
        if more := len(least.holders) - len(shown):
            shown.append(f"{more} more")
        pinned = any(h.name in self.model and self.model[h.name].quantizable for h in least.holders)
        mend = "unpin these, allow fewer bits" if pinned else "allow fewer bits"
        return f"{text}, held up by {', '.join(shown)}; {mend}, or raise the budget"

    def _check_together(self, space: SearchSpace, limits: Sequence[Limit]) -> None:
        """Look for weights of the additive limits under which even the cheapest policy exceeds their weighted sum.

        Such weights prove that no policy meets all of them (Lagrangian duality); a policy that does ends the check.
        """
        priced = [limit for limit in limits if limit.metric in self.additive]
        if len(priced) < 2:
            return
        multipliers = [1.0 / len(priced) for _ in priced]
        for _ in range(40):
            rates: dict[str, float] = {}
            for limit, multiplier in zip(priced, multipliers, strict=True):
                rates[limit.metric] = rates.get(limit.metric, 0.0) + multiplier / limit.value
            policy = self._cheapest(
                space,
                lambda i, choice, r=rates: sum(rate * self._cost(i, choice).values[m] for m, rate in r.items()),  # type: ignore[misc]
            )
            costs = self.costs(policy)
            if _all_met(limits, costs):
                return
            excess = [costs[limit.metric] / limit.value - 1 for limit in priced]
            if sum(m * e for m, e in zip(multipliers, excess, strict=True)) > 1e-9:
                wanted = " and ".join(repr(limit.text) for limit in priced)
                best = ", ".join(f"{limit.metric} {quantity(limit.metric, costs[limit.metric])}" for limit in priced)
                raise BudgetError(
                    f"budgets {wanted} can each be met, but not together: the best compromise has {best}; raise one"
                )
            multipliers = [m * exp(2 * max(-1.0, min(e, 1.0))) for m, e in zip(multipliers, excess, strict=True)]
            multipliers = [m / sum(multipliers) for m in multipliers]


def _all_met(limits: Sequence[Limit], costs: dict[str, float]) -> bool:
    return all(limit.met(costs) for limit in limits)


def quantity(metric: str, value: float) -> str:
    """``value`` of ``metric`` in its most readable decimal unit: ``quantity("latency_s", 0.0123)`` is ``12.3 ms``."""
    units = (
        {size: unit for unit, size in METRICS[metric].units.items() if "i" not in unit}
        if metric in METRICS
        else {1.0: ""}
    )
    size = max((s for s in units if s <= abs(value)), default=min(units))
    return f"{value / size:.4g} {units[size]}".rstrip()
