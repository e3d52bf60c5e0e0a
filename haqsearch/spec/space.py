"""The search space: what the user allows, intersected with what the device supports, with ties made explicit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

from haqsearch.errors import PolicyError
from haqsearch.spec.formats import Format
from haqsearch.spec.model import LayerSpec, ModelSpec
from haqsearch.spec.policy import FLOAT_CHOICE, Choice, Policy


@dataclass(frozen=True)
class Variable:
    """One decision. ``role`` is ``weight`` or ``activation``; an activation variable serves every layer of its tie.

    ``candidates`` are ordered from fewest bits to most; a pinned layer has one.
    """

    name: str
    role: str
    layers: tuple[str, ...]
    candidates: tuple[Format, ...]


@dataclass(frozen=True)
class SearchSpace:
    """All policies an agent may propose, as a product of variables in network order, weight before activation.

    ``removed`` says in words what the device or the pinning took away.
    """

    model: ModelSpec
    variables: tuple[Variable, ...]
    removed: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of policies."""
        return prod(len(variable.candidates) for variable in self.variables)

    def policy(self, indices: Sequence[int]) -> Policy:
        """Policy that takes candidate ``indices[i]`` of variable ``i``."""
        weight: dict[str, Format] = {}
        activation: dict[str, Format] = {}
        for variable, index in zip(self.variables, indices, strict=True):
            target = weight if variable.role == "weight" else activation
            for layer in variable.layers:
                target[layer] = variable.candidates[index]
        return Policy(
            {
                layer.name: Choice(weight[layer.name], activation[layer.name]) if layer.quantizable else FLOAT_CHOICE
                for layer in self.model
            }
        )

    def indices(self, policy: Policy) -> tuple[int, ...]:
        """Inverse of ``policy``. Raises PolicyError if a format is not a candidate."""
        found = []
        for variable in self.variables:
            choice = policy[variable.layers[0]]
            value = choice.weight if variable.role == "weight" else choice.activation
            if value not in variable.candidates:
                names = ", ".join(map(str, variable.candidates))
                raise PolicyError(f"{variable.name}: {value} is not in the search space ({names})")
            found.append(variable.candidates.index(value))
        return tuple(found)

    def nearest(self, policy: Policy) -> Policy:
        """The policy of this space whose every format has the least difference in bits; of two as near, the wider.

        ``policy`` may have formats that are no candidates, but has every layer. Raises PolicyError otherwise.
        """
        policy = policy.check(self.model)
        indices = []
        for variable in self.variables:
            choice = policy[variable.layers[0]]
            wish = choice.weight if variable.role == "weight" else choice.activation
            distance = [(abs(f.bits - wish.bits), f != wish, -f.bits) for f in variable.candidates]
            indices.append(distance.index(min(distance)))
        return self.policy(indices)

    def contains(self, policy: Policy) -> bool:
        try:
            return self.policy(self.indices(policy)) == policy
        except (PolicyError, KeyError):
            return False

    def uniform(self) -> list[Policy]:
        """Every policy with one weight format and one activation format on all layers that are not pinned."""
        widths = {
            role: sorted({f for v in self.variables if v.role == role and len(v.candidates) > 1 for f in v.candidates})
            for role in ("weight", "activation")
        }
        found: dict[Policy, None] = {}
        anything = [Format("float", 32)]  # stands in where no layer has a choice of that role
        free = [v for v in self.variables if len(v.candidates) > 1]
        for w in widths["weight"] or anything:
            for a in widths["activation"] or anything:
                want = {"weight": w, "activation": a}
                if all(want[v.role] in v.candidates for v in free):
                    indices = [v.candidates.index(want[v.role]) if v in free else 0 for v in self.variables]
                    found[self.policy(indices)] = None
        return list(found)

    @classmethod
    def build(
        cls,
        model: ModelSpec,
        weight_bits: Sequence[int | Format],
        activation_bits: Sequence[int],
        fixed: Mapping[str, Choice] | None = None,
        supports: Callable[[LayerSpec, Choice], bool] = lambda layer, choice: True,
        device: str = "the device",
    ) -> SearchSpace:
        """Space of ``intW`` weights - or of the formats named - and ``uintA`` activations; ``fixed`` layers have one candidate.

        Raises PolicyError for an unknown fixed layer, a fixed choice the device refuses, or a layer left without candidates.
        """
        fixed = dict(fixed or {})
        for name in fixed:
            if name not in model:
                near = get_close_matches(name, [layer.name for layer in model], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise PolicyError(f"fixed: {model.name} has no layer {name!r}{hint}")
        named = {f if isinstance(f, Format) else Format.parse(f"int{f}") for f in weight_bits}
        weights = sorted(named, key=lambda format: (format.bits, format))
        activations = [Format.parse(f"uint{b}") for b in sorted(set(activation_bits))]
        removed: list[str] = []
        allowed = {
            layer.name: _legal(layer, weights, activations, fixed.get(layer.name), supports, device, removed)
            for layer in model.quantizable
        }
        removed += [f"{layer.name}: stays in float32 ({layer.reason})" for layer in model if not layer.quantizable]
        variables = []
        seen: set[str] = set()
        ties = model.ties
        for layer in model.quantizable:
            variables.append(Variable(f"{layer.name}.weight", "weight", (layer.name,), allowed[layer.name][0]))
            tie = layer.activation_tie or layer.name
            if tie in seen:
                continue
            seen.add(tie)
            shared = [f for f in allowed[layer.name][1] if all(f in allowed[name][1] for name in ties[tie])]
            if not shared:
                raise PolicyError(
                    f"layers {', '.join(ties[tie])} share one activation format, but have no candidate in common"
                )
            if len(ties[tie]) > 1:
                for name in ties[tie]:
                    if lost := [str(f) for f in allowed[name][1] if f not in shared]:
                        removed.append(
                            f"{name}: {', '.join(lost)} activations, because it shares its input with {', '.join(ties[tie])}"
                        )
            variables.append(Variable(f"{layer.name}.activation", "activation", ties[tie], tuple(shared)))
        return cls(model, tuple(variables), tuple(removed))


def _legal(
    layer: LayerSpec,
    weights: list[Format],
    activations: list[Format],
    fixed: Choice | None,
    supports: Callable[[LayerSpec, Choice], bool],
    device: str,
    removed: list[str],
) -> tuple[tuple[Format, ...], tuple[Format, ...]]:
    """Weight and activation candidates of one layer whose every pair the device supports."""
    if fixed is not None:
        if fixed.weight.is_float != fixed.activation.is_float:
            raise PolicyError(f"fixed: layer {layer.name!r}: weights and activation are both float32 or both integers")
        if not supports(layer, fixed.computed):
            raise PolicyError(f"fixed: {device} does not support {fixed} for layer {layer.name!r}")
        return (fixed.weight,), (fixed.activation,)
    legal = {(w, a) for w in weights for a in activations if supports(layer, Choice(w, a).computed)}
    w_kept = tuple(w for w in weights if any((w, a) in legal for a in activations))
    a_kept = tuple(a for a in activations if any((w, a) in legal for w in weights))
    if not legal:
        asked = f"weights {', '.join(map(str, weights))} and activations {', '.join(map(str, activations))}"
        raise PolicyError(f"{device} supports none of the pairs asked for in layer {layer.name!r} ({asked})")
    if any((w, a) not in legal for w in w_kept for a in a_kept):
        pairs = ", ".join(str(Choice(w, a)) for w, a in sorted(legal))
        raise PolicyError(
            f"{device} supports only the pairs {pairs} in layer {layer.name!r}: "
            "choose weight_bits and activation_bits so that every pair is among them"
        )
    if lost := [str(f) for f in [*weights, *activations] if f not in w_kept and f not in a_kept]:
        removed.append(f"{layer.name}: {', '.join(lost)}, which {device} does not support")
    return w_kept, a_kept
