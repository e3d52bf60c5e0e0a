"""IntegerProgram -> ONNX of integers alone (opset 21): ConvInteger, MatMulInteger, and the program's own requantization.

Codes are the program's, bit for bit, on every runtime that follows the standard: between the QuantizeLinear of the input and
the DequantizeLinear of the output stand no floats. An accumulator is requantized as the program does it, in 64 bits,
clamp(((acc * multiplier + offset) >> shift) + zero point, low, high); ONNX shifts no signed integers, so the sum is lifted by
(zero point - low) << shift first: what is negative then is below ``low`` and clipped, and of the rest a division is the shift.

Weights are unsigned codes with zero point 128: of signed ones the kernels of x86 without VNNI saturate.

For a check of what a deployment computes, and for runtimes with integer kernels of their own. Those that fuse
QuantizeLinear pairs (most) are faster on the format ``onnx``, which may differ by a step in few places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import helper
from torch import Tensor

from haqsearch.errors import ExportError
from haqsearch.export.onnx_writer import OnnxWriter, container
from haqsearch.runtime import Instruction, IntegerProgram, TensorInfo

_MIDDLE = 128  # zero point of the weights, whose codes are unsigned


def export(program: IntegerProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``program`` to ``path``; see ``OnnxWriter.write``.

    Raises ExportError, naming the layer, also for one that reads codes of more than 8 bits: ONNX multiplies bytes.
    """
    _Writer(program).write(path, metadata)


class _Writer(OnnxWriter):
    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(program)
        self.wide: dict[str, str] = {}  # value -> name of it as int64

    def _compute(self, step: Instruction, outputs: list[TensorInfo]) -> None:
        at, infos = step.attributes, [self.program.tensors[name] for name in step.inputs]
        match step.op:
            case "conv2d" | "linear" | "avg_pool2d":
                sums = self._sums(step, infos[0])
                for out in outputs:
                    self._requantized(sums, out, self._bound(step, infos), 0)
            case "add":
                for out, multipliers in zip(outputs, at["multipliers"], strict=True):
                    parts = [
                        self._node("Mul", [self._wide(info.name), self._integer(multiplier)], f"{out.name}.part{k}")
                        for k, (info, multiplier) in enumerate(zip(infos, multipliers, strict=True))
                    ]
                    total = parts[0]
                    for k, part in enumerate(parts[1:]):
                        total = self._node("Add", [total, part], f"{out.name}.sum{k}")
                    zero = sum(info.zero_point * m for info, m in zip(infos, multipliers, strict=True))
                    bound = sum(info.largest * abs(m) for info, m in zip(infos, multipliers, strict=True))
                    self._requantized(total, out, bound, zero)
            case "rescale":
                for out in outputs:
                    self._requantized(self._wide(infos[0].name), out, infos[0].largest, infos[0].zero_point)
            case "concat":
                for out in outputs:
                    parts = [
                        self._requantized(self._wide(info.name), out, info.largest, info.zero_point, part=i)
                        for i, info in enumerate(infos)
                    ]
                    self._node("Concat", parts, out.name, axis=at["dim"])
            case "minimum":
                out = outputs[0]
                high = self.program.constants[f"{step.name}.high"].reshape(-1, *[1] * (len(out.shape or ()) - 1))
                bounds = self._constant(f"{out.name}.bounds", high.numpy(), np.int64)
                least = self._node("Min", [self._wide(infos[0].name), bounds], f"{out.name}.least")
                self._cast(least, out, out.name)
            case _:
                raise ExportError(f"{step.name}: ONNX export does not know {step.op!r}")

    def _sums(self, step: Instruction, x: TensorInfo) -> str:
        """sum of (x - zero point) * weight as int64."""
        if x.format.width > 8:
            raise ExportError(
                f"{step.layer or step.name}: reads {x.format.width}-bit codes, and ONNX's integer operators multiply bytes; "
                "give its activations 8 bits or fewer, or export as onnx"
            )
        at, zero = step.attributes, self._zero_point(x)
        if step.op == "avg_pool2d":
            channels = (x.shape or (1,))[0]
            weight = self._constant(f"{step.name}.ones", np.ones((channels, 1, *at["kernel"])), np.uint8)
            none = self._constant("zero", 0, np.uint8)
            window = {"strides": at["stride"], "pads": [*at["padding"], *at["padding"]], "group": channels}
            found = self._node("ConvInteger", [x.name, weight, zero, none], f"{step.name}.acc", **window)
            return self._wide(found)
        codes = self.program.constants[f"{step.name}.weight"].numpy().astype(np.int16) + _MIDDLE
        name, middle = f"{step.layer}.weight_codes", self._constant("middle", _MIDDLE, np.uint8)
        if step.op == "linear":
            weight = self._constant(name, codes.T, np.uint8)
            found = self._node("MatMulInteger", [x.name, weight, zero, middle], f"{step.name}.acc")
        else:
            found = self._node(
                "ConvInteger",
                [x.name, self._constant(name, codes, np.uint8), zero, middle],
                f"{step.name}.acc",
                strides=at["stride"],
                pads=[*at["padding"], *at["padding"]],
                dilations=at["dilation"],
                group=at["groups"],
            )
        return self._wide(found)

    def _bound(self, step: Instruction, infos: list[TensorInfo]) -> int:
        """Largest magnitude of the sum before requantization."""
        at = step.attributes
        return int(at["bound"]) if "bound" in at else infos[0].largest * int(np.prod(at["kernel"]))

    def _requantized(self, acc: str, out: TensorInfo, bound: int, zero: int, part: int | None = None) -> str:
        """Codes of ``out`` (of a ``part`` of it) for the int64 sums ``acc`` - ``zero``, of magnitude ``bound`` at most."""
        name = out.name if part is None else f"{out.name}.{part}"
        multiplier, offset, shift = (self._epilogue(out.name, kind, part) for kind in ("multiplier", "offset", "shift"))
        lift = out.zero_point - out.low
        # In float64: what is asked is whether int64 would overflow.
        largest = (bound + abs(zero)) * multiplier.double() + offset.double().abs() + lift * 2.0 ** shift.double()
        if float(largest.max()) >= 2**62:
            raise ExportError(f"{out.name}: its sums do not fit 64 bits when requantized; export as onnx")
        lifted = offset - zero * multiplier + (lift << shift)
        turned = [self._shaped(t, out) for t in (multiplier, lifted, 2**shift)]
        constants = [
            self._constant(f"{name}.{kind}", value, np.int64)
            for kind, value in zip(("multiplier", "offset", "divisor"), turned, strict=True)
        ]
        scaled = self._node("Mul", [acc, constants[0]], f"{name}.scaled")
        summed = self._node("Add", [scaled, constants[1]], f"{name}.lifted")
        shifted = self._node("Div", [summed, constants[2]], f"{name}.shifted")
        clipped = self._node("Clip", [shifted, self._integer(0), self._integer(out.high - out.low)], f"{name}.clipped")
        if out.low:
            clipped = self._node("Add", [clipped, self._integer(out.low)], f"{name}.wide")
        return self._cast(clipped, out, name)

    def _epilogue(self, name: str, kind: str, part: int | None) -> Tensor:
        constant = self.program.constants[f"{name}.{kind}"]
        return constant if part is None else constant[part : part + 1]

    @staticmethod
    def _shaped(values: Tensor, out: TensorInfo) -> np.ndarray:
        """(1,) or (N,), N the channels: to be broadcast against a batch of ``out``."""
        image = len(out.shape or ()) == 3 and len(values) > 1
        return values.numpy().reshape(-1, 1, 1) if image else values.numpy()

    def _integer(self, value: int) -> str:
        return self._constant(f"int64({value})", value, np.int64)

    def _wide(self, name: str) -> str:
        """``name`` as int64; the Cast is written once."""
        if name not in self.wide:
            self.wide[name] = self._node("Cast", [name], f"{name}.int64", to=_type(np.int64))
        return self.wide[name]

    def _cast(self, wide: str, out: TensorInfo, name: str) -> str:
        return self._node("Cast", [wide], name, to=_type(container(out)))


def _type(kind: type[np.generic]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
