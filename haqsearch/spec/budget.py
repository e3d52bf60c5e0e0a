"""Metrics with their units, and budgets: limits on them that a policy has to meet exactly."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from sys import float_info
from typing import Protocol

from haqsearch.errors import BudgetError
from haqsearch.spec.policy import Choice, Policy


@dataclass(frozen=True)
class Metric:
    """A cost, always to be made small. ``units`` maps the unit's text to its size in the metric's base unit."""

    name: str
    title: str
    base_unit: str
    units: Mapping[str, float]


_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("latency_s", "latency of one inference batch", "s", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}),
        Metric("energy_j", "energy of one inference batch", "J", {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9}),
        Metric("size_bytes", "bytes of packed weights, biases and scales", "B", _BYTES),
        Metric("peak_activation_bytes", "largest sum of live activation buffers of one sample", "B", _BYTES),
        Metric(
            "bops",
            "bit operations of one sample: sum of macs * w * a",
            "",
            {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
        ),
    )
}


class Costing(Protocol):
    """Whatever can price a whole policy: a device bound to a model (``hwmodels.Meter``)."""

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def additive(self) -> Collection[str]:
        """The metrics that are sums over the layers: those an exact solver may add."""
        ...

    def costs(self, policy: Policy) -> dict[str, float]:
        """Every metric of the whole network under ``policy``, in base units."""
        ...

    def layer_values(self, layer: str, choice: Choice) -> Mapping[str, float]:
        """What one layer under ``choice`` adds to every additive metric, in base units."""
        ...


@dataclass(frozen=True)
class Limit:
    """A budget made absolute: ``metric`` must not exceed ``value`` (base unit of the metric)."""

    metric: str
    value: float
    text: str

    def met(self, costs: Mapping[str, float]) -> bool:
        return costs[self.metric] <= self.value


@dataclass(frozen=True)
class Budget:
    """``metric <= limit`` as the user wrote it; ``relative_to`` is ``int8`` (all layers at 8/8) or empty."""

    metric: str
    limit: float
    relative_to: str = ""
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``latency_s <= 0.6 * int8`` or ``size_bytes <= 120 kB``. Raises BudgetError with the mend."""
        match = re.fullmatch(r"\s*(\w+)\s*<=\s*([0-9.eE+-]+)\s*(\*\s*(\w+)|[A-Za-z]*)\s*", text)
        if not match:
            raise BudgetError(f"budget {text!r}: write METRIC <= NUMBER UNIT, or METRIC <= NUMBER * int8")
        name, number, unit, baseline = match[1], match[2], match[3], match[4]
        if name not in METRICS:
            near = get_close_matches(name, METRICS, n=1, cutoff=0.3) or list(METRICS)
            raise BudgetError(f"budget {text!r}: unknown metric {name!r}; did you mean {near[0]!r}?")
        try:
            value = float(number)
        except ValueError:
            raise BudgetError(f"budget {text!r}: {number!r} is not a number") from None
        metric = METRICS[name]
        if not 0 < value * metric.units.get(unit, 1.0) < float("inf"):
            raise BudgetError(f"budget {text!r}: the limit must be a positive number")
        if baseline:
            if baseline != "int8":
                raise BudgetError(
                    f"budget {text!r}: a limit is relative to int8 (all layers at 8/8), not to {baseline!r}"
                )
            return cls(name, value, "int8", text.strip())
        if unit not in metric.units:
            units = ", ".join(repr(u) if u else "no unit" for u in metric.units)
            raise BudgetError(f"budget {text!r}: unit {unit!r} does not fit {name}; use one of {units}, or '* int8'")
        return cls(name, value * metric.units[unit], "", text.strip())

    def resolve(self, int8: Mapping[str, float]) -> Limit:
        """Absolute limit, given the costs of the all-8/8 policy. Raises BudgetError if the device does not know the metric."""
        if self.metric not in int8:
            raise BudgetError(f"budget {self.text!r}: this device has no {self.metric}; it knows {', '.join(int8)}")
        return Limit(self.metric, self.limit * (int8[self.metric] if self.relative_to else 1.0), self.text)


def violation(costs: Mapping[str, float], limits: tuple[Limit, ...]) -> float:
    """Sum over the limits of the fraction by which each is exceeded; 0.0 exactly when every limit is met."""
    # One ulp over the limit can divide to exactly 1.0; the floor keeps "0.0 exactly when every limit is met" true.
    return sum(
        max(float_info.epsilon, costs[limit.metric] / limit.value - 1.0) for limit in limits if not limit.met(costs)
    )
