"""Memories of a data-sheet device, and the bits that a layer moves through each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from haqsearch.spec import Choice
from hwmodels.geometry import Loops, ceil_div
from hwmodels.schema import Bytes, Count, Energy, Rate, Section, Share, Text

Tensor = Literal["weights", "inputs", "outputs"]


class Level(Section):
    """A memory. The file lists them from the outermost to the innermost.

    holds        the tensors that pass through it; weights and inputs are read from it, outputs written to it
    size_bytes   without it, there is always room
    bandwidth    ``bandwidth_bytes_per_s`` or ``bandwidth_bits_per_cycle``; without either it is never waited for
    resident     tensors that stay here, so that the memories outside are not touched: weights in network order, as many as
                 there is room for; inputs and outputs of a layer, if both fit
    reads        ``once`` per layer, or ``per_mac``: every multiply-accumulate reads its operands here (energy only)
    weight_compression   stored bits of a weight / bits of a weight, where weights are kept compressed
    """

    name: Text
    holds: list[Tensor]
    size_bytes: Bytes | None = None
    bandwidth_bytes_per_s: Rate | None = None
    bandwidth_bits_per_cycle: Rate | None = None
    double_buffered: bool = False
    resident: list[Tensor] = Field(default_factory=list)
    reads: Literal["once", "per_mac"] = "once"
    weight_compression: Share = 1.0
    read_pj_per_bit: Energy = 0.0
    write_pj_per_bit: Energy = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> Level:
        if self.bandwidth_bytes_per_s and self.bandwidth_bits_per_cycle:
            raise ValueError("give bandwidth_bytes_per_s or bandwidth_bits_per_cycle, not both")
        if not self.holds:
            raise ValueError(
                f"holds: memory {self.name!r} holds nothing; list weights, inputs or outputs, or take it out"
            )
        if len(set(self.holds)) < len(self.holds):
            raise ValueError("holds: list every tensor once")
        if not (self.size_bytes or self.bits_per_s(1.0) or self.read_pj_per_bit or self.write_pj_per_bit):
            raise ValueError(f"memory {self.name!r} changes nothing: give size_bytes, a bandwidth, or read_pj_per_bit")
        if strangers := [tensor for tensor in self.resident if tensor not in self.holds]:
            raise ValueError(f"resident: {strangers[0]} cannot stay where it is not held; add it to holds")
        if self.resident and self.size_bytes is None:
            raise ValueError("resident: what stays has to fit: give size_bytes")
        return self

    def bits_per_s(self, frequency_hz: float) -> float | None:
        if self.bandwidth_bytes_per_s is not None:
            return 8 * self.bandwidth_bytes_per_s
        return None if self.bandwidth_bits_per_cycle is None else self.bandwidth_bits_per_cycle * frequency_hz

    @property
    def capacity_bits(self) -> float:
        """Bits that one working set may take."""
        return float("inf") if self.size_bytes is None else 8 * self.size_bytes / (2 if self.double_buffered else 1)


class Traffic(Section):
    """How tensors move.

    model     ``once``: each crosses each memory once a layer. ``stream``: inputs are fetched as the arithmetic reads them,
              one patch per output pixel. ``tiled``: as once, but if neither weights nor inputs fit into the innermost memory
              that holds them, the cheaper of the two moves again for each piece of the other
    overlap   the memories and the arithmetic work at the same time (``max``) or wait for each other (``sum``)
    output_bits   width that results are written in
    """

    model: Literal["once", "stream", "tiled"] = "once"
    overlap: Literal["max", "sum"] = "max"
    output_bits: Count = 8


def transfers(
    levels: Sequence[Level], traffic: Traffic, loops: Loops, choice: Choice, batch: int
) -> list[dict[str, float]]:
    """Bits of each tensor of a layer through each memory, for one batch.

    Memories outside the one where a tensor stays move only what had no room there; what tiling fetches again comes from
    outside of the innermost memory of that tensor.
    """
    once = _once(traffic, loops, choice, batch)
    again = _with_refetches(levels, once) if traffic.model == "tiled" else once
    weights_before = loops.weights_before * choice.weight.width
    found = []
    for position, level in enumerate(levels):
        inner = levels[position + 1 :]
        bits = {}
        for tensor in level.holds:
            passing = min((_passing(tensor, deeper, once, weights_before) for deeper in inner), default=1.0)
            if not passing:
                continue
            innermost = not any(tensor in deeper.holds for deeper in inner)
            bits[str(tensor)] = passing * (once if innermost else again)[tensor]
            if tensor == "weights":
                bits[tensor] *= level.weight_compression
        found.append(bits)
    return found


def _once(traffic: Traffic, loops: Loops, choice: Choice, batch: int) -> dict[str, float]:
    """Bits of each tensor if it moves once."""
    weights = loops.reduction * loops.outputs * loops.groups
    patches = loops.pixels * loops.reduction * (loops.outputs if loops.kind == "depthwise" else loops.groups)
    inputs = patches if traffic.model == "stream" else loops.fetched
    outputs = loops.pixels * loops.outputs * loops.groups
    return {
        "weights": float(weights * choice.weight.width),
        "inputs": float(batch * inputs * choice.activation.width),
        "outputs": float(batch * outputs * traffic.output_bits),
    }


def _with_refetches(levels: Sequence[Level], once: Mapping[str, float]) -> dict[str, float]:
    pieces = {tensor: max(ceil_div(once[tensor], _room(levels, tensor)), 1) for tensor in ("weights", "inputs")}
    weights, inputs = once["weights"] * pieces["inputs"], once["inputs"] * pieces["weights"]
    if min(pieces.values()) == 1:  # one of them stays while the other passes by
        return dict(once)
    weights_again = weights - once["weights"] < inputs - once["inputs"]
    return {**once, "weights": weights} if weights_again else {**once, "inputs": inputs}


def _room(levels: Sequence[Level], tensor: str) -> float:
    """Bits that a working set of ``tensor`` may take in the innermost memory that has it and a size."""
    sized = [level for level in levels if tensor in level.holds and level.size_bytes]
    return sized[-1].capacity_bits / len(sized[-1].holds) if sized else float("inf")


def _passing(tensor: str, level: Level, once: Mapping[str, float], weights_before: float) -> float:
    """Share of ``tensor`` that comes from outside of ``level`` for every inference, because it does not stay there."""
    if tensor not in level.resident:
        return 1.0
    if tensor == "weights":
        room = level.capacity_bits / level.weight_compression - weights_before
        return 1.0 - min(max(room / once[tensor], 0.0), 1.0)
    return float(once["inputs"] + once["outputs"] > level.capacity_bits)
