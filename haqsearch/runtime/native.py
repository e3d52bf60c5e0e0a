"""An IntegerProgram on the native kernels: stages of instructions that run in C++ in one piece.

An instruction without a native form (a float region, codes of more than 8 bits, an unusual reshape) runs on the reference
between two stages. Packed weights belong to the constants they were made from: a policy that shares a layer with an earlier one
packs it no second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from haqsearch.kernels import native
from haqsearch.kernels.native import Box, Network, Slot, whole
from haqsearch.quant import storage_dtype
from haqsearch.runtime.interpret import epilogue, last_readers, run_step
from haqsearch.runtime.program import Instruction, IntegerProgram, TensorInfo

FEW_ROWS = 8
"""Up to so many rows a linear layer is bound by reading its weights, and reads them packed."""

_NARROW = (torch.uint8, torch.int8)
_packed: WeakIdKeyDictionary = WeakIdKeyDictionary()
_programs: WeakKeyDictionary[IntegerProgram, dict[tuple[str, bool, int, int], NativeProgram]] = WeakKeyDictionary()


def compiled(program: IntegerProgram, batch: int, start: int = 0, stop: int | None = None) -> NativeProgram:
    """Instructions ``start`` to before ``stop`` for the native kernels, made once for batches up to FEW_ROWS, once for larger."""
    made = _programs.setdefault(program, {})
    stop = len(program.instructions) if stop is None else stop
    key = (native.isa(), batch <= FEW_ROWS, start, stop)
    if key not in made:
        made[key] = NativeProgram(program, batch <= FEW_ROWS, start, stop)
    return made[key]


@dataclass
class Stage:
    """Instructions that run in C++ together: reads the values ``sources``, gives the values ``targets``."""

    network: Network = field(default_factory=Network)
    slots: dict[str, Slot] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)


class NativeProgram:
    """Stages, and instructions for the reference between them: those of ``program`` from ``start`` to before ``stop``.

    few  batches are small, see FEW_ROWS
    """

    def __init__(self, program: IntegerProgram, few: bool, start: int, stop: int) -> None:
        # The stages hold no reference to the program itself: it is the key that keeps this object.
        last = last_readers(program)
        self.parts: list[Stage | Instruction] = []
        self._fallback = _Fallback(program)
        for step in program.instructions[start:stop]:
            if not _has_native_form(program, step):
                self.parts.append(step)
            elif self.parts and isinstance(self.parts[-1], Stage):
                self.parts[-1].instructions.append(step)
            else:
                self.parts.append(Stage(instructions=[step]))
        position = {step.name: i for i, step in enumerate(program.instructions)}
        for part in self.parts:
            if isinstance(part, Stage):
                end = position[part.instructions[-1].name]
                _Builder(program, part, few).build(
                    [n for s in part.instructions for n in s.outputs if last.get(n, -1) > end or n == program.output]
                )

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations that one sample takes at most, borders and alignment included."""
        return max((p.network.arena_bytes for p in self.parts if isinstance(p, Stage)), default=0)

    def run(self, values: dict[str, Any]) -> None:
        """Put what the instructions give into ``values``, which hold what they read."""
        for part in self.parts:
            if isinstance(part, Stage):
                results = part.network.run([values[name] for name in part.sources])
                values.update(zip(part.targets, results, strict=True))
            else:
                self._fallback.run(part, values)


class _Fallback:
    """What an instruction on the reference needs of its program."""

    def __init__(self, program: IntegerProgram) -> None:
        self.tensors, self.constants = program.tensors, program.constants

    def run(self, step: Instruction, values: dict[str, Any]) -> None:
        run_step(self, step, values, "reference")  # type: ignore[arg-type]


class _Builder:
    """Turns the instructions of a stage into steps of its network."""

    def __init__(self, program: IntegerProgram, stage: Stage, few: bool) -> None:
        self.program, self.stage, self.network, self.few = program, stage, stage.network, few

    def build(self, targets: Sequence[str]) -> None:
        for step in self.stage.instructions:
            for name in step.inputs:
                if name not in self.stage.slots and step.op != "quantize":
                    self.network.take(self._source(name), self._slot(name))
            getattr(self, f"_{step.op}")(step)
        for i, name in enumerate(targets):
            self.network.give(i, self.stage.slots[name])
        self.stage.targets = list(targets)
        self.network.finish()

    def _info(self, name: str) -> TensorInfo:
        return self.program.tensors[name]

    def _slot(self, name: str) -> Slot:
        if name not in self.stage.slots:
            info = self._info(name)
            assert info.shape is not None
            self.stage.slots[name] = self.network.slot(info.shape, storage_dtype(info.format), info.zero_point)
        return self.stage.slots[name]

    def _source(self, name: str) -> int:
        if name not in self.stage.sources:
            self.stage.sources.append(name)
        return self.stage.sources.index(name)

    def _epilogue(self, name: str, channels: int, index: int | None = None) -> Any:
        return native.epilogue(self._slot(name), channels, *epilogue(self.program, name, index)[:-1])

    def _op(self, output: str, make: Callable[[], Any], variant: Any = None) -> Any:
        """The packed operation that gives ``output``, made once for its constants."""
        constants = self.program.constants[f"{output}.offset"]
        made = _packed.setdefault(constants, {})
        key = (native.isa(), variant)
        if key not in made:
            made[key] = make()
        return made[key]

    # -- one kind of instruction each -----------------------------------------------------------------------------

    def _quantize(self, step: Instruction) -> None:
        info = self._info(step.outputs[0])
        slot = self._slot(info.name)
        self.network.quantize(self._source(step.inputs[0]), slot, info.scale, info.zero_point, info.low, info.high)

    def _conv2d(self, step: Instruction) -> None:
        at, kernel = step.attributes, self.program.constants[f"{step.name}.weight"].shape[2:]
        window = (at["stride"], at["padding"], at["dilation"])
        source = self._slot(step.inputs[0])
        self.network.pad(source, native.window_border(source.shape[1:], kernel, *window))
        self._layer(step, self.program.constants[f"{step.name}.weight"], window, at["groups"], False)

    def _linear(self, step: Instruction) -> None:
        weight = self.program.constants[f"{step.name}.weight"][:, :, None, None]
        rows = prod(self._slot(step.inputs[0]).shape[:-1])
        self._layer(step, weight, ((1, 1), (0, 0), (1, 1)), 1, self.few and rows <= FEW_ROWS)

    def _layer(self, step: Instruction, weight: Tensor, window: Any, groups: int, few_rows: bool) -> None:
        x, source = self._info(step.inputs[0]), self._slot(step.inputs[0])
        bits = step.weight_format.computed_as.width if step.weight_format else 8
        for name in step.outputs:
            made = self._op(
                name,
                lambda name=name: native.conv_op(  # type: ignore[misc]
                    source,
                    x.zero_point,
                    (x.low, x.high),
                    weight,
                    bits,
                    window,
                    groups,
                    self._epilogue(name, weight.shape[0]),
                    few_rows,
                ),
                few_rows,
            )
            self.network.step(made, [whole(source)], whole(self._slot(name)))

    def _sum(self, inputs: Sequence[str], multipliers: Sequence[int], output: str, box: Box, index: int | None) -> None:
        zero_points = [self._info(name).zero_point + self._slot(name).bias for name in inputs]
        made = self._op(
            output, lambda: native.weighted_sum_op(zero_points, multipliers, self._epilogue(output, 1, index)), index
        )
        self.network.step(made, [whole(self._slot(name)) for name in inputs], box)

    def _rescale(self, step: Instruction) -> None:
        for name in step.outputs:
            self._sum(step.inputs, [1], name, whole(self._slot(name)), None)

    def _add(self, step: Instruction) -> None:
        for name, multipliers in zip(step.outputs, step.attributes["multipliers"], strict=True):
            self._sum(step.inputs, multipliers, name, whole(self._slot(name)), None)

    def _concat(self, step: Instruction) -> None:
        for name in step.outputs:
            at = 0
            for i, read in enumerate(step.inputs):
                shape = self._info(read).shape
                assert shape is not None
                box = _box(self._slot(name), step.attributes["dim"], at, shape[step.attributes["dim"] - 1])
                self._sum([read], [1], name, box, i)
                at += shape[step.attributes["dim"] - 1]

    def _avg_pool2d(self, step: Instruction) -> None:
        at, source = step.attributes, self._slot(step.inputs[0])
        window = [*at["kernel"], *at["stride"], *at["padding"], 1, 1]
        zero_point = self._info(step.inputs[0]).zero_point + source.bias
        for name in step.outputs:
            made = self._op(name, lambda name=name: native.pool_op(window, zero_point, self._epilogue(name, 1)))  # type: ignore[misc]
            self.network.step(made, [whole(source)], whole(self._slot(name)))

    def _max_pool2d(self, step: Instruction) -> None:
        at = step.attributes
        window = [*at["kernel"], *at["stride"], *at["padding"], *at["dilation"]]
        self.network.step(
            native.pool_op(window, 0, None), [whole(self._slot(step.inputs[0]))], whole(self._slot(step.outputs[0]))
        )

    def _minimum(self, step: Instruction) -> None:
        """min(q, high) by channel, as two depthwise 1 x 1 convolutions: q + (largest - high) is cut at the largest code that
        the container holds, and the same is taken away again."""
        name = step.outputs[0]
        source, target = self._slot(step.inputs[0]), self._slot(name)
        least, most = (
            torch.iinfo(storage_dtype(self._info(name).format)).min,
            torch.iinfo(storage_dtype(self._info(name).format)).max,
        )
        room = most - self.program.constants[f"{name}.high"]
        between = self.network.slot(source.shape, storage_dtype(self._info(name).format), 0)
        ones = torch.ones(len(room), 1, 1, 1, dtype=torch.int8)
        window = ((1, 1), (0, 0), (1, 1))
        for x, y, move, low in ((source, between, room, least), (between, target, -room, self._info(name).low)):
            half = torch.ones_like(room)  # a shift by one bit, and the half that is added before it
            constants = native.epilogue(y, len(room), 2 * half, 2 * move + half, half, 0, low, most)
            made = native.conv_op(x, 0, (least, most), ones, 2, window, len(room), constants)
            self.network.step(made, [whole(x)], whole(y))

    def _slice(self, step: Instruction) -> None:
        source, target = self._slot(step.inputs[0]), self._slot(step.outputs[0])
        at, dim = step.attributes, step.attributes["dim"]
        start, _, stride = slice(at["start"], at["end"], at["step"]).indices(source.shape[dim - 1])
        box = _box(source, dim, start, target.shape[dim - 1], stride)
        self.network.step(native.copy_op(), [box], whole(target))

    def _pad(self, step: Instruction) -> None:
        source, target = self._slot(step.inputs[0]), self._slot(step.outputs[0])
        amounts = [*step.attributes["amounts"], 0, 0, 0, 0, 0, 0][0:6:2]  # before, last dimension first
        y, x, channel = (amounts[1], amounts[0], amounts[2]) if source.image else (0, amounts[1], amounts[0])
        all_of = whole(source)
        box = Box(target, y, x, channel, all_of.height, all_of.width, all_of.channels)
        self.network.step(native.copy_op(), [all_of], box, clear=True)

    def _reshape(self, step: Instruction) -> None:
        source, target = self._slot(step.inputs[0]), self._slot(step.outputs[0])
        height, width, channels = source.height_width_channels
        if source.image and height * width > 1:
            self.network.step(native.flatten_op(), [whole(source)], whole(target))
        else:
            self.network.step(native.copy_op(), [Box(source, 0, 0, 0, 1, 1, width * channels)], whole(target))


def _box(slot: Slot, dim: int, start: int, length: int, step: int = 1) -> Box:
    """The part of ``slot`` that dimension ``dim`` (counted with the batch) restricts to ``length`` places from ``start``."""
    y, x, channel = 0, 0, 0
    height, width, channels = slot.height_width_channels
    axis = _axes(slot.shape)[dim - 1]
    if axis == "y":
        return Box(slot, start, x, channel, length, width, channels, step, 1)
    if axis == "x":
        return Box(slot, y, start, channel, height, length, channels, 1, step)
    return Box(slot, y, x, start, height, width, length)


def _axes(shape: Sequence[int]) -> str:
    """Axis (c, y, x) of each dimension of a sample."""
    return {1: "c", 2: "xc", 3: "cyx"}[len(shape)]


def _has_native_form(program: IntegerProgram, step: Instruction) -> bool:
    infos = [program.tensors[name] for name in (*step.inputs, *step.outputs)]
    shapes = [info.shape for info in infos]
    if any(shape is None or not 1 <= len(shape) <= 3 or 0 in shape for shape in shapes):
        return False
    given = [storage_dtype(program.tensors[name].format) for name in step.outputs]
    taken = [storage_dtype(program.tensors[name].format) for name in step.inputs]
    first = shapes[0] or ()
    match step.op:
        case "quantize":
            return given[0] in _NARROW and len(first) == len(shapes[-1] or ())
        case "conv2d" | "avg_pool2d" | "linear" | "add" | "rescale" | "concat":
            sound = all(d in _NARROW for d in taken) and all(d in (*_NARROW, torch.int16) for d in given)
            return sound and (step.op != "linear" or len(first) < 3) and _one_shape(step, shapes)
        case "minimum":
            return taken[0] in _NARROW and len(first) in {1, 3}
        case "max_pool2d" | "slice" | "pad" | "reshape":
            return taken[0] in _NARROW and _moves_natively(step, first, shapes[-1] or ())
        case _:
            return False


def _one_shape(step: Instruction, shapes: Sequence[Any]) -> bool:
    """A residual add may broadcast; natively all shapes are one."""
    return step.op != "add" or len(set(shapes)) == 1


def _moves_natively(step: Instruction, source: Sequence[int], target: Sequence[int]) -> bool:
    at = step.attributes
    match step.op:
        case "slice":
            return at["step"] == 1 or _axes(source)[at["dim"] - 1] != "c"
        case "pad":
            return min(at["amounts"]) >= 0
        case "reshape":
            flat = len(target) == 1 or (prod(target[1:]) == 1 and len(target) == 3)
            return flat and (len(source) < 3 or len(target) == 1 or prod(source[1:]) == 1)
        case _:
            return True
