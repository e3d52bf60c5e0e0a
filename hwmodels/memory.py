"""Metrics that no device changes: bytes of the stored network, bit operations, peak activation memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from haqsearch.spec import ActivationSpec, Choice, LayerSpec, ModelSpec, Policy

ADDITIVE = ("size_bytes", "bops")
METRICS = (*ADDITIVE, "peak_activation_bytes")

_FLOAT_BYTES = 4
_BIAS_BYTES = 4  # int32 at the scale of the accumulator
_SCALE_BYTES = 4  # one float32 weight scale per output channel; of a codebook, one


def packed_bytes(elements: int, bits: float) -> int:
    """Bytes of ``elements`` codes of ``bits`` each, packed without gaps and rounded up to a whole byte."""
    return int(-(-elements * bits // 8))


def size_bytes(layer: LayerSpec, choice: Choice) -> int:
    """Bytes of the layer in the deployed file: packed weights, bias, and (if quantized) a scale per output channel.

    Of ``kmeansB``: indices, a codebook of 2**B int8, and one scale. Formats that share by blocks: what the blocks share too.
    """
    channels = layer.out_channels if layer.weight_shape else 0
    if choice.weight.is_float:
        return _FLOAT_BYTES * (layer.weight_count + channels * layer.has_bias) if layer.weight_shape else 0
    shared = channels * _SCALE_BYTES
    if choice.weight.kind == "kmeans":
        shared = (2**choice.weight.width + _SCALE_BYTES) * bool(channels)
    rows = layer.weight_shape[0] if layer.weight_shape else 1
    codes = choice.weight.nbytes(rows, layer.weight_count // rows)
    return codes + shared + channels * _BIAS_BYTES * layer.has_bias


def bops(layer: LayerSpec, choice: Choice) -> float:
    """Bit operations of one sample: macs * w * a, a float counting as 32 bits [Baskin et al. 2018, 1804.10969].

    Widths are those computed with: 8 for weights of ``kmeansB``, whatever B, and of formats that share by blocks.
    """
    return float(layer.macs * choice.computed.weight.width * choice.activation.width)


def layer_values(layer: LayerSpec, choice: Choice, stored: Choice) -> dict[str, float]:
    """The additive metrics of one layer under ``choice``, which the device's memory holds as ``stored``.

    The deployed file holds weights as they are stored, whatever the device makes of them as it computes.
    """
    in_file = choice if choice.weight.is_decoded else stored
    return {"size_bytes": float(size_bytes(layer, in_file)), "bops": bops(layer, choice)}


@dataclass(frozen=True)
class ActivationMemory:
    """Activation buffers of a network over its schedule.

    buffers    what is stored, once each
    live       (steps, buffers) one where the buffer is alive; steps that cannot be the peak are left out
    """

    buffers: tuple[ActivationSpec, ...]
    live: np.ndarray

    @classmethod
    def of(cls, model: ModelSpec) -> ActivationMemory:
        """Buffers of ``model``. Without ``model.activations`` every layer is one step that holds its input, in its own
        activation format, and its output, in 8 bits (32 for a float layer); branches that stay alive are not seen.
        """
        buffers = model.activations or tuple(
            b for step, layer in enumerate(model) for b in _input_and_output(layer, step)
        )
        steps = {
            frozenset(i for i, b in enumerate(buffers) if b.first <= s <= b.last) for s in {b.first for b in buffers}
        }
        steps = {s for s in steps if not any(s < other for other in steps)}
        live = np.zeros((len(steps), len(buffers)))
        for row, alive in enumerate(sorted(map(sorted, steps))):
            live[row, alive] = 1.0
        return cls(buffers, live)

    def bytes(self, policy: Policy) -> list[int]:
        """Bytes of every buffer under ``policy``."""
        return [
            packed_bytes(b.elements, policy[b.format_of].activation.bits if b.format_of else b.bits)
            for b in self.buffers
        ]

    def peak(self, policy: Policy) -> float:
        """Largest sum of live buffers of one sample, in bytes."""
        return float((self.live @ np.array(self.bytes(policy))).max()) if self.buffers else 0.0

    def at_peak(self, policy: Policy, keep: Callable[[ActivationSpec], bool]) -> list[tuple[ActivationSpec, int]]:
        """Buffers alive at the peak that ``keep`` wants, with their bytes."""
        if not self.buffers:
            return []
        sizes = self.bytes(policy)
        alive = self.live[int((self.live @ np.array(sizes)).argmax())]
        return [(b, size) for b, size, on in zip(self.buffers, sizes, alive, strict=True) if on and keep(b)]


def _input_and_output(layer: LayerSpec, step: int) -> tuple[ActivationSpec, ActivationSpec]:
    bits = 8 if layer.quantizable else 32
    return (
        ActivationSpec(f"{layer.name}.input", layer.in_elements, step, step, layer.name),
        ActivationSpec(f"{layer.name}.output", layer.out_elements, step, step, "", bits),
    )
