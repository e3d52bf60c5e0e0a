"""IntegerProgram -> ONNX with explicit QuantizeLinear / DequantizeLinear pairs (opset 21).

Every integer of the program is in the file as an integer: weights as int8, biases as int32, activations as uint8 (the
logits as int16), with the program's own scales and zero points. Widths below 8 are kept in 8-bit containers, and a Clip
before the QuantizeLinear holds the values inside the narrower range.

A runtime computes between the pairs in float, or fuses them into its own integer kernels. Either way it rounds
real / scale half to even where the program rounds acc * multiplier / 2**shift half up, so codes can differ where a value
falls within a float's error of halfway between two codes. Runtimes whose u8 x s8 kernels saturate (x86 without VNNI) differ
by more: there, disable graph optimizations, or use 7-bit activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from haqsearch.errors import ExportError
from haqsearch.export.onnx_writer import OnnxWriter
from haqsearch.runtime import Instruction, IntegerProgram, TensorInfo


def export(program: IntegerProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``program`` to ``path``; see ``OnnxWriter.write``."""
    _Writer(program).write(path, metadata)


class _Writer(OnnxWriter):
    def _compute(self, step: Instruction, outputs: list[TensorInfo]) -> None:
        inputs = [self._dequantized(name) for name in step.inputs]
        at = step.attributes
        real = f"{step.name}.result"
        match step.op:
            case "conv2d":
                padding = [*at["padding"], *at["padding"]]
                weights = self._weights(step)
                self._node(
                    "Conv",
                    [inputs[0], *weights],
                    real,
                    strides=at["stride"],
                    pads=padding,
                    dilations=at["dilation"],
                    group=at["groups"],
                )
            case "linear":
                weight, bias = self._weights(step)
                flat = self.program.tensors[step.inputs[0]].shape
                if flat is not None and len(flat) == 1:
                    self._node("Gemm", [inputs[0], weight, bias], real, transB=1)
                else:
                    turned = self._node("Transpose", [weight], f"{step.name}.turned", perm=[1, 0])
                    self._node("Add", [self._node("MatMul", [inputs[0], turned], f"{step.name}.product"), bias], real)
            case "avg_pool2d":
                padding = [*at["padding"], *at["padding"]]
                self._node(
                    "AveragePool",
                    inputs,
                    real,
                    kernel_shape=at["kernel"],
                    strides=at["stride"],
                    pads=padding,
                    count_include_pad=1,
                )
            case "add":
                self._node("Add", inputs, real)
            case "concat":
                self._node("Concat", inputs, real, axis=at["dim"])
            case "rescale":
                real = inputs[0]
            case "minimum":
                out = outputs[0]
                high = (self.program.constants[f"{out.name}.high"].numpy() - out.zero_point).astype(np.float32)
                bounds = (high * np.float32(out.scale)).reshape(-1, *[1] * (len(out.shape or ()) - 1))
                self._node("Min", [inputs[0], self._constant(f"{out.name}.bounds", bounds, np.float32)], real)
            case _:
                raise ExportError(f"{step.name}: ONNX export does not know {step.op!r}")
        for info in outputs:
            self._quantized(real, info)

    def _weights(self, step: Instruction) -> list[str]:
        """DequantizeLinear of weight (int8, per output channel) and bias (int32, scale of the accumulator)."""
        constants = self.program.constants
        weight, bias = constants[f"{step.name}.weight"].numpy(), constants[f"{step.name}.bias"].numpy()
        scale = constants[f"{step.name}.weight_scale"].numpy().astype(np.float64)
        accumulator = scale * self.program.tensors[step.inputs[0]].scale
        names = []
        for kind, codes, scales in (("weight", weight, scale), ("bias", bias, accumulator)):
            name = f"{step.layer}.{kind}"
            inputs = [
                self._constant(f"{name}_codes", codes, codes.dtype),
                self._constant(f"{name}_scale", scales, np.float32),
                self._constant(f"{name}_zero_point", np.zeros(len(scales)), codes.dtype),
            ]
            names.append(self._node("DequantizeLinear", inputs, name, axis=0))
        return names
