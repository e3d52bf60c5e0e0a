"""A piece of a network for the native executor: tensors, steps, their places in the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

import haqsearch.kernels.native._native as _native
from haqsearch.errors import ModelError
from haqsearch.kernels.arena import Lifetime, place

_ALIGNMENT = 64
_SLACK = 64  # kernels read up to so many bytes behind the last pixel
_CACHE_BYTES = 512 * 1024  # an arena of this size stays in a core's second-level cache

Border = tuple[int, int, int, int]
"""Top, left, bottom, right, in pixels."""


@dataclass
class Slot:
    """A tensor of codes in the arena. ``shape``: (C, H, W) of an image, otherwise (..., features).

    ``bias`` is what is added to every code: int8 codes are held as uint8 with 128 added. ``fill`` is the border's code, bias
    included. ``uses`` are the steps that write or read it: it is alive from the first to the last.
    """

    index: int
    shape: tuple[int, ...]
    bytes: int
    fill: int
    bias: int
    border: Border = (0, 0, 0, 0)
    uses: list[int] = field(default_factory=list)

    @property
    def image(self) -> bool:
        return len(self.shape) == 3

    @property
    def height_width_channels(self) -> tuple[int, int, int]:
        if self.image:
            return self.shape[1], self.shape[2], self.shape[0]
        return 1, prod(self.shape[:-1]), self.shape[-1]

    @property
    def stride(self) -> int:
        """Bytes of one image with border and slack, aligned."""
        height, width, channels = self.height_width_channels
        top, left, bottom, right = self.border
        size = (height + top + bottom) * (width + left + right) * channels * self.bytes + _SLACK
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Box:
    """A part of a slot: the pixels from (y, x) in steps, the channels from ``channel``."""

    slot: Slot
    y: int
    x: int
    channel: int
    height: int
    width: int
    channels: int
    step_y: int = 1
    step_x: int = 1

    def numbers(self) -> list[int]:
        return [
            self.slot.index, self.y, self.x, self.channel, self.height, self.width, self.channels, self.step_y, self.step_x
        ]  # fmt: skip


def whole(slot: Slot) -> Box:
    """All of a slot."""
    height, width, channels = slot.height_width_channels
    return Box(slot, 0, 0, 0, height, width, channels)


@dataclass
class Network:
    """Steps over slots. Build it with ``slot``, ``quantize``, ``take``, ``step`` and ``give``, then ``run`` it."""

    slots: list[Slot] = field(default_factory=list)
    steps: list[tuple[Any, list[Box], Box, bool]] = field(default_factory=list)
    imports: list[tuple[str, int, Box, tuple[Any, ...]]] = field(default_factory=list)
    exports: list[tuple[int, Box]] = field(default_factory=list)
    arena_bytes: int = 0
    _executor: Any = None

    def slot(self, shape: Sequence[int], dtype: torch.dtype, zero_point: int) -> Slot:
        """A new tensor of codes of ``dtype`` (uint8, int8, or int16 for what the network gives)."""
        if dtype not in {torch.uint8, torch.int8, torch.int16}:
            raise ModelError(f"the native kernels take codes in uint8 or int8, and give int16 at most; not {dtype}")
        bias = 128 if dtype == torch.int8 else 0
        fill = zero_point + bias if dtype != torch.int16 else 0
        self.slots.append(Slot(len(self.slots), tuple(shape), 2 if dtype == torch.int16 else 1, fill, bias))
        return self.slots[-1]

    def quantize(self, source: int, slot: Slot, scale: float, zero_point: int, low: int, high: int) -> None:
        """Fill ``slot`` from the float32 input number ``source``."""
        self.imports.append(("quantize", source, whole(slot), (scale, zero_point, low, high, slot.bias)))
        slot.uses.append(-1)

    def take(self, source: int, slot: Slot) -> None:
        """Fill ``slot`` from the input number ``source``, which holds codes of a byte."""
        if slot.bytes != 1:
            raise ModelError("the native kernels take codes in uint8 or int8, not int16")
        self.imports.append(("take", source, whole(slot), (slot.bias,)))
        slot.uses.append(-1)

    def step(self, op: Any, inputs: Sequence[Box], output: Box, clear: bool = False) -> None:
        """Run ``op``; with ``clear`` the whole slot of the output is set to its zero point before."""
        for box in (*inputs, output):
            box.slot.uses.append(len(self.steps))
        self.steps.append((op, list(inputs), output, clear))

    def give(self, target: int, slot: Slot) -> None:
        """Copy ``slot`` to the output number ``target``."""
        self.exports.append((target, whole(slot)))

    def pad(self, slot: Slot, border: Border) -> None:
        """Have at least this border around ``slot``."""
        slot.border = tuple(max(a, b) for a, b in zip(slot.border, border, strict=True))  # type: ignore[assignment]

    def finish(self) -> None:
        """Place the slots in the arena and hand everything to the executor."""
        for _, box in self.exports:
            box.slot.uses.append(len(self.steps))
        offsets, self.arena_bytes = place([Lifetime(s.stride, min(s.uses), max(s.uses)) for s in self.slots])
        executor = _native.Executor()
        executor.arena_bytes = self.arena_bytes
        for slot, offset in zip(self.slots, offsets, strict=True):
            executor.tensor(
                slot.height_width_channels, slot.border, slot.bytes, slot.fill, slot.image, offset, slot.stride
            )
        for kind, source, box, numbers in self.imports:
            getattr(executor, kind)(source, box.numbers(), *numbers)
        for op, inputs, output, clear in self.steps:
            executor.step(op, [box.numbers() for box in inputs], output.numbers(), clear)
        for target, box in self.exports:
            executor.give(target, box.numbers(), box.slot.bias)
        self._executor = executor

    @property
    def chunk(self) -> int:
        """Images that go through the steps together, so that the arena stays in the cache."""
        return max(1, _CACHE_BYTES // max(self.arena_bytes, 1))

    def run(self, sources: Sequence[Tensor], threads: int | None = None, chunk: int | None = None) -> list[Tensor]:
        """The outputs (codes) for ``sources``, each (B, *shape): what ``give`` named, in its order.

        Raises ModelError if a source has not the type and the shape of the slot it fills.
        """
        if self._executor is None:
            self.finish()
        sources = [source.contiguous() for source in sources]
        batch = self._batch(sources)
        results = []
        for _, box in self.exports:
            slot = box.slot
            dtype = torch.int16 if slot.bytes == 2 else torch.int8 if slot.bias else torch.uint8
            results.append(torch.empty((batch, *slot.shape), dtype=dtype))
        self._executor.run(
            [source.data_ptr() for source in sources],
            [result.data_ptr() for result in results],
            batch,
            chunk or self.chunk,
            threads or torch.get_num_threads(),
        )
        return results

    def _batch(self, sources: Sequence[Tensor]) -> int:
        """Images in ``sources``. The kernels read where a slot's shape says, so it has to be the sources' too."""
        batch: int = sources[0].shape[0]
        for kind, source, box, _ in self.imports:
            x, slot = sources[source], box.slot
            dtype = torch.float32 if kind == "quantize" else torch.int8 if slot.bias else torch.uint8
            if x.dtype != dtype or tuple(x.shape) != (batch, *slot.shape):
                raise ModelError(
                    f"input {source} of these kernels is {dtype} of shape {(batch, *slot.shape)}, "
                    f"not {x.dtype} of {tuple(x.shape)}"
                )
        return batch
