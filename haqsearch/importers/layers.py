"""What every importer needs: layers by name or by order, and a policy that keeps the network's ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from haqsearch.errors import PolicyError
from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec, Policy
from haqsearch.spec.policy import FLOAT_CHOICE

EIGHT = Format("uint", 8)
_LISTED = {"conv2d", "depthwise_conv2d", "linear"}
_SHOWN = 4  # names in a message
T = TypeVar("T")


@dataclass(frozen=True)
class Imported:
    """A policy, and in ``notes`` what its file did not say or could not have here: one sentence each."""

    policy: Policy
    notes: tuple[str, ...] = ()


def listed(model: ModelSpec) -> tuple[LayerSpec, ...]:
    """The layers that other tools number: convolutions and linear layers, in execution order."""
    return tuple(layer for layer in model if layer.op in _LISTED)


def by_order(entries: Sequence[T], layers: Sequence[LayerSpec], where: str) -> dict[str, T]:
    """One entry a layer. Raises PolicyError that lists what is left over on either side."""
    if len(entries) < len(layers):
        left = [layer.name for layer in layers[len(entries) :]]
        raise PolicyError(
            f"{where}: {len(entries)} entries for {len(layers)} convolutions and linear layers: none is left for {some(left)}; "
            "it was written for another network, or leaves layers out: name every layer"
        )
    if len(entries) > len(layers):
        extra = [f"entry {i} ({entry})" for i, entry in enumerate(entries)][len(layers) :]
        raise PolicyError(
            f"{where}: {len(entries)} entries for {len(layers)} convolutions and linear layers: no layer is left for "
            f"{some(extra)}; it was written for another network"
        )
    return {layer.name: entry for layer, entry in zip(layers, entries, strict=True)}


def some(names: Sequence[str]) -> str:
    """The first few of ``names``, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def bits_of(value: object, where: str) -> int:
    """``value`` as a width; PolicyError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 1 <= value <= 16:
        raise PolicyError(f"{where}: {value!r} is not a number of bits, 1 to 16")
    return int(value)


def integer(value: object, where: str, kind: str = "int") -> Format:
    """``value`` bits of integers that programs take; PolicyError otherwise."""
    bits = bits_of(value, where)
    try:
        return Format.parse(f"{kind}{bits}")
    except PolicyError as error:
        raise PolicyError(f"{where}: {error}") from None


def assembled(
    weights: Mapping[str, Format],
    activations: Mapping[str, Format],
    model: ModelSpec,
    where: str,
    notes: Sequence[str] = (),
) -> Imported:
    """Policy of the given formats; an activation that is not given is uint8.

    Layers that read one tensor get the widest of their activations; layers that stay in float, float32: both with a note.
    """
    said = list(notes)
    choices: dict[str, Choice] = {}
    for members in model.ties.values():
        asked = {activations.get(name, EIGHT) for name in members}
        widest = max(asked, key=lambda format: format.bits)
        if len(asked) > 1:
            said.append(f"{some(members)} read one tensor: {widest}, the widest of their activations")
        choices |= {name: Choice(weights[name], widest) for name in members}
    floats = [layer.name for layer in model if not layer.quantizable]
    if kept := [name for name in floats if name in weights]:
        said.append(f"{some(kept)}: float32, as no integer kernel computes what the file quantizes")
    policy = Policy({layer.name: choices.get(layer.name, FLOAT_CHOICE) for layer in model})
    return Imported(policy.check(model, where), tuple(said))
