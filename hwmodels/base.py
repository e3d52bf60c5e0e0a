"""What every device model answers, and the table of all its answers for one network.

A device model is a class with ``supports`` and ``cost``; everything else is derived. Run
``haqsearch.testing.hardware_cases.HardwareModelCases`` on your own model to find out whether it keeps the contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from haqsearch.errors import HardwareError, PolicyError
from haqsearch.spec import Choice, LayerSpec, ModelSpec, Policy, SearchSpace
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import memory

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: ``values`` by metric in base units; ``bound`` names what limits the layer's latency
    (``compute``, ``weights``, ``activations``, ``outputs``, ``overhead``); ``source`` says where the numbers come from, and
    begins with ``profile``, ``measured``, ``interpolated`` or ``extrapolated``; ``seconds``, where the device knows them,
    are those of each resource if nothing else held it up."""

    values: Mapping[str, float]
    bound: str
    source: str
    seconds: Mapping[str, float] = field(default_factory=dict)


class HardwareModel(ABC):
    """A device. Subclasses set the attributes below and implement ``digest``, ``supports`` and ``cost``.

    name, summary    what it is called, and one line about it
    metrics          names from ``haqsearch.spec.METRICS`` that ``cost`` returns, each for one batch
    additive         the metrics that are sums over the layers (a solver may add them); all of them unless overridden
    default_batch    samples per batch when the user does not say
    draft            nobody has said where its numbers come from
    """

    name: str
    summary: str
    metrics: tuple[str, ...]
    default_batch: int = 1
    draft: bool = False

    @property
    def additive(self) -> tuple[str, ...]:
        return self.metrics

    @property
    @abstractmethod
    def digest(self) -> str:
        """Digest of everything the costs depend on: equal digests promise equal costs."""

    @abstractmethod
    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        """Whether ``cost`` has an answer. A layer that is not quantizable must be supported in float32.

        Devices are asked about formats that are computed with (``Choice.computed``): never about a codebook.
        """

    @abstractmethod
    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> LayerCost:
        """Cost of one layer for one batch of ``batch`` samples, a pure function of its arguments.

        Raises HardwareError exactly when ``supports`` says no or ``batch`` is less than one.
        """

    def stored(self, layer: LayerSpec, choice: Choice) -> Choice:
        """``choice`` in the widths that the device's memory holds; itself unless the device pads."""
        return choice

    def bind(self, model: ModelSpec) -> HardwareModel:
        """This device for the layers of ``model``: what a layer costs may depend on the network that it is part of."""
        return self

    def total(self, metric: str, values: Sequence[float]) -> float:
        """Cost of the network from the costs of its layers. Override it for the metrics that are not ``additive``."""
        return sum(values)

    def table(self, model: ModelSpec, choices: SearchSpace | Sequence[Choice], batch: int | None = None) -> CostTable:
        """Costs of every layer under every choice; a SearchSpace gives each layer its own candidates.

        Raises HardwareError if a layer is left without any supported choice.
        """
        batch = batch or self.default_batch
        device = self.bind(model)
        if isinstance(choices, SearchSpace):
            allowed = candidates(choices)
        else:
            allowed = {layer.name: tuple(choices) if layer.quantizable else (FLOAT_CHOICE,) for layer in model}
        columns = tuple(dict.fromkeys(choice for layer in model for choice in allowed[layer.name]))
        metrics = tuple(dict.fromkeys((*self.additive, *memory.ADDITIVE)))
        column = {choice: i for i, choice in enumerate(columns)}
        values = {metric: np.full((len(model), len(columns)), np.inf) for metric in metrics}
        for row, layer in enumerate(model):
            supported = [choice for choice in allowed[layer.name] if device.supports(layer, choice.computed)]
            if not supported:
                raise HardwareError(f"{self.name}: supports none of the choices offered for layer {layer.name!r}")
            for choice in supported:
                stored = memory.layer_values(layer, choice, device.stored(layer, choice.computed))
                cost = {**stored, **device.cost(layer, choice.computed, batch).values}
                for metric in metrics:
                    values[metric][row, column[choice]] = cost[metric]
        return CostTable(tuple(layer.name for layer in model), columns, values)


def candidates(space: SearchSpace) -> dict[str, tuple[Choice, ...]]:
    """Every choice the space leaves each layer; of a layer that stays in float, float32 alone."""
    found = {}
    for layer in space.model:
        by_role = {v.role: v.candidates for v in space.variables if layer.name in v.layers}
        if layer.quantizable:
            found[layer.name] = tuple(Choice(w, a) for w in by_role["weight"] for a in by_role["activation"])
        else:
            found[layer.name] = (FLOAT_CHOICE,)
    return found


@dataclass(frozen=True)
class CostTable:
    """Additive costs of a network: ``values[metric][layer, choice]`` in base units, for one batch.

    ``layers`` and ``choices`` name the rows and columns; ``inf`` marks a choice that the layer cannot have.
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    values: Mapping[str, Floats]

    def indices(self, policies: Iterable[Policy]) -> Indices:
        """Column of every layer's choice, shape (policies, layers). Raises PolicyError if a choice has no column."""
        column = {choice: i for i, choice in enumerate(self.choices)}
        try:
            return np.array([[column[policy[name]] for name in self.layers] for policy in policies], dtype=np.intp)
        except KeyError as error:
            raise PolicyError(f"the cost table has no entry for {error.args[0]}") from None

    def totals(self, indices: npt.ArrayLike, metrics: Sequence[str] = ()) -> dict[str, Floats]:
        """Costs of many policies given as columns, shape (policies, layers); one array (policies,) per metric.

        ``metrics`` restricts the work to those named. Raises IndexError for a column that does not exist.
        """
        columns = np.atleast_2d(np.asarray(indices, dtype=np.intp))
        if columns.size and (columns.min() < 0 or columns.max() >= len(self.choices)):
            raise IndexError(f"choice index outside 0..{len(self.choices) - 1}")
        offsets = np.arange(len(self.layers)) * len(self.choices)
        sums = {metric: np.empty(len(columns)) for metric in metrics or self.values}
        ones = np.ones(len(self.layers))  # a product with them sums faster than sum() does along the last axis
        block = 2048  # policies at a time, so that the gathered values stay in the cache
        for start in range(0, len(columns), block):
            cells = columns[start : start + block] + offsets
            for metric, out in sums.items():
                np.dot(self.values[metric].ravel().take(cells), ones, out=out[start : start + block])
        return sums

    def rows(self) -> Iterator[dict[str, str | float]]:
        """One flat record per available (layer, choice), ready for ``csv.DictWriter`` or a data frame."""
        for row, layer in enumerate(self.layers):
            for column, choice in enumerate(self.choices):
                costs = {metric: float(array[row, column]) for metric, array in self.values.items()}
                if all(np.isfinite(list(costs.values()))):
                    yield {"layer": layer, "choice": str(choice), **costs}
