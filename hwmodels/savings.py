"""Where fewer bits buy nothing on a device, and a search space without the choices that nobody needs.

A policy's layer is idle in a role if every narrower width of it saves less than 1 % of the layer's latency: the device
rounds up to the width it has, or something else holds the layer up. Only the whole truth is pruned from a search: a
candidate goes if a wider one costs no more, exactly, in every limited metric and whatever else is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from haqsearch.spec import Choice, Format, LayerSpec, Policy, SearchSpace, Variable
from hwmodels.meter import PEAK, Meter

NOTHING = 0.01  # of a layer's cost: a saving below it is none
WIDTHS = range(2, 9)  # of integer programs


@dataclass(frozen=True)
class Saving:
    """Largest share of ``layer``'s cost that narrower weights alone, activations alone, or both, can save from ``choice``."""

    layer: str
    choice: Choice
    weight: float
    activation: float
    both: float

    @property
    def idle(self) -> tuple[str, ...]:
        """Roles that could be narrower but save nothing; ``both`` only where neither they together do."""
        roles = {"weight": self.weight, "activation": self.activation, "both": self.both}
        return tuple(role for role, saving in roles.items() if saving < NOTHING)


def savings(meter: Meter, policy: Policy, metric: str = "latency_s", widths: Iterable[int] = WIDTHS) -> list[Saving]:
    """What narrower widths among ``widths`` would save of ``metric`` in every quantized layer of ``policy``."""
    known = sorted(set(widths))
    found = []
    for layer, cost in meter.layer_costs(policy):
        choice = policy[layer.name]
        if choice.weight.is_float or choice.activation.is_float:
            continue
        weights = [replace(choice.weight, width=bits) for bits in known if bits < choice.weight.width]
        activations = [replace(choice.activation, width=bits) for bits in known if bits < choice.activation.width]
        options = {
            "weight": [Choice(w, choice.activation) for w in weights],
            "activation": [Choice(choice.weight, a) for a in activations],
            "both": [Choice(w, a) for w in weights for a in activations],
        }
        best = {
            role: max((_saved(meter, layer, cost.values[metric], other, metric) for other in choices), default=0.0)
            for role, choices in options.items()
        }
        found.append(Saving(layer.name, choice, best["weight"], best["activation"], max(best.values())))
    return found


def idle(meter: Meter, policy: Policy) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The metric looked at - latency, where the device knows it - and each layer's roles that could be narrower for nothing."""
    metric = "latency_s" if "latency_s" in meter.metrics else meter.metrics[0]
    roles = {saving.layer: saving.idle for saving in savings(meter, policy, metric)}
    return metric, {layer.name: roles.get(layer.name, ()) for layer in meter.model}


def _saved(meter: Meter, layer: LayerSpec, cost: float, other: Choice, metric: str) -> float:
    if cost <= 0 or not meter.device.supports(layer, other.computed):
        return 0.0
    return 1 - meter.layer_cost(layer.name, other).values[metric] / cost


def without_dominated(space: SearchSpace, meter: Meter, metrics: Sequence[str]) -> SearchSpace:
    """``space`` without the candidates that a wider one dominates: no more of any of ``metrics`` in any context.

    Of every policy that was there, a policy remains that has no fewer bits anywhere and costs no more in ``metrics``. So if
    accuracy does not fall with more bits, a best policy within limits on ``metrics`` remains. The sizes that no
    limit names may be larger. Repeated until nothing more goes: what one layer loses is a context less for its others.
    """
    table = _Contexts(meter, tuple(metrics))
    kept = {variable.name: variable.candidates for variable in space.variables}
    shrinking = True
    while shrinking:
        shrinking = False
        for variable in space.variables:
            remaining = _undominated(variable, kept, space, table)
            shrinking = shrinking or len(remaining) < len(kept[variable.name])
            kept[variable.name] = remaining
    variables = tuple(replace(variable, candidates=kept[variable.name]) for variable in space.variables)
    removed = [
        f"{old.name}: {', '.join(str(f) for f in old.candidates if f not in new.candidates)}, which buy nothing: on "
        f"{meter.device.name} a wider one costs no more {', '.join(metrics)}"
        for old, new in zip(space.variables, variables, strict=True)
        if old.candidates != new.candidates
    ]
    return replace(space, variables=variables, removed=(*space.removed, *removed))


def _undominated(
    variable: Variable, kept: dict[str, tuple[Format, ...]], space: SearchSpace, table: _Contexts
) -> tuple[Format, ...]:
    role = variable.role
    partners = {v.layers[0]: kept[v.name] for v in space.variables if v.role == "weight"}
    if role == "weight":
        (name,) = variable.layers
        shared = next(v for v in space.variables if v.role == "activation" and name in v.layers)
        partners = {name: kept[shared.name]}
    candidates = kept[variable.name]
    return tuple(
        narrow
        for i, narrow in enumerate(candidates)
        if not any(
            wide.width > narrow.width and table.no_dearer(variable.layers, role, wide, narrow, partners)
            for wide in candidates[i + 1 :]
        )
    )


@dataclass(frozen=True)
class _Contexts:
    """Compares two formats of one variable over all that the other role's formats can be."""

    meter: Meter
    metrics: tuple[str, ...]

    def no_dearer(
        self, layers: tuple[str, ...], role: str, wide: Format, narrow: Format, partners: dict[str, tuple[Format, ...]]
    ) -> bool:
        """Whether ``wide`` costs at most as much as ``narrow`` in every metric, whatever the layers' other formats."""
        for metric in self.metrics:
            for name in layers:
                pairs = [
                    (Choice(wide, other), Choice(narrow, other))
                    if role == "weight"
                    else (Choice(other, wide), Choice(other, narrow))
                    for other in partners[name]
                ]
                if metric == PEAK and PEAK not in self.meter.device.metrics:
                    if any(self._held(name, more) > self._held(name, less) for more, less in pairs):
                        return False
                    continue
                rises = [self._cost(name, more, metric) - self._cost(name, less, metric) for more, less in pairs]
                # Layer by layer: a rise here that a fall elsewhere makes up for could exceed a limit by its rounding.
                if any(rise > 0 if metric in self.meter.additive else rise != 0 for rise in rises):
                    return False
        return True

    def _cost(self, name: str, choice: Choice, metric: str) -> float:
        return self.meter.layer_cost(name, choice).values[metric]

    def _held(self, name: str, choice: Choice) -> float:
        """Bits that an activation of the layer takes in memory."""
        return self.meter.device.stored(self.meter.model[name], choice.computed).activation.bits
