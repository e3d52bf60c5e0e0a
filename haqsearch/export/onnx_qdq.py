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
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from haqsearch.errors import ExportError
from haqsearch.files import replacing
from haqsearch.runtime import Instruction, IntegerProgram, TensorInfo

OPSET = 21  # the first with 16-bit QuantizeLinear
_IR_VERSION = 10


def export(program: IntegerProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``program`` to ``path`` (atomically), with ``metadata`` as the model's properties.

    Input ``input`` float32 (batch, ...), output ``output`` float32 (batch, ...). Raises ExportError, naming the layer, for a
    program with a float region.
    """
    model = _Writer(program).model()
    helper.set_model_props(model, {"haqsearch.program": program.name, **metadata})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        onnx.save(model, str(temporary))


class _Writer:
    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.real: dict[str, str] = {program.input: "input"}  # program tensor -> name of its float values

    def model(self) -> onnx.ModelProto:
        for step in self.program.instructions:
            self._step(step)
        info = self.program.output_info
        self._node("Identity", [self._dequantized(info.name)], "output")
        shapes = [self.program.tensors[self.program.input].shape, info.shape]
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *(shape or ())])
            for name, shape in zip(("input", "output"), shapes, strict=True)
        ]
        graph = helper.make_graph(
            self.nodes, self.program.name, values[:1], values[1:], list(self.initializers.values())
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="haqsearch"
        )

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}:{output}", **attributes))
        return output

    def _constant(self, name: str, value: Any, dtype: Any) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def _parameters(self, info: TensorInfo) -> list[str]:
        """Names of the scale and the zero point of a tensor."""
        scale = self._constant(f"{info.name}.scale", info.scale, np.float32)
        return [scale, self._constant(f"{info.name}.zero_point", info.zero_point, _container(info))]

    def _quantized(self, real: str, info: TensorInfo) -> None:
        """QuantizeLinear of the float value ``real`` into the program's tensor ``info``, behind a Clip if it is narrower."""
        limits = np.iinfo(_container(info))
        if (info.low, info.high) != (limits.min, limits.max):
            bounds = [
                self._constant(f"{info.name}.{side}", (code - info.zero_point) * info.scale, np.float32)
                for side, code in (("low", info.low), ("high", info.high))
            ]
            real = self._node("Clip", [real, *bounds], f"{info.name}.clipped")
        self._node("QuantizeLinear", [real, *self._parameters(info)], info.name)

    def _dequantized(self, name: str) -> str:
        """Name of the float values of a tensor; the DequantizeLinear is written once."""
        if name not in self.real:
            info = self.program.tensors[name]
            self.real[name] = self._node("DequantizeLinear", [name, *self._parameters(info)], f"{name}.real")
        return self.real[name]

    # -- one instruction each -------------------------------------------------------------------------------------

    def _step(self, step: Instruction) -> None:
        outputs = [self.program.tensors[name] for name in step.outputs]
        match step.op:
            case "quantize":
                self._quantized(self._dequantized(step.inputs[0]), outputs[0])
                return
            case "reshape" | "slice" | "pad" | "max_pool2d":
                self._move(step, outputs[0])
                return
            case "dequantize":
                self.real[step.outputs[0]] = self._dequantized(step.inputs[0])
                return
            case "float":
                layer = step.layer or step.attributes["target"]
                raise ExportError(
                    f"{layer}: runs in float32, which this ONNX export cannot express; model.safetensors holds the program"
                )
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

    def _move(self, step: Instruction, out: TensorInfo) -> None:
        """Moves work on the codes themselves."""
        at, name = step.attributes, step.inputs[0]
        match step.op:
            case "reshape":
                shape = self._constant(f"{out.name}.shape", [0, *(out.shape or ())], np.int64)
                self._node("Reshape", [name, shape], out.name)
            case "slice":
                parts = [("start", at["start"]), ("end", at["end"]), ("dim", at["dim"]), ("step", at["step"])]
                values = [self._constant(f"{out.name}.{key}", [value], np.int64) for key, value in parts]
                self._node("Slice", [name, *values], out.name)
            case "pad":
                pairs = list(zip(at["amounts"][::2], at["amounts"][1::2], strict=True))[
                    ::-1
                ]  # torch counts from the last dimension
                pairs = [(0, 0)] * (1 + len(out.shape or ()) - len(pairs)) + pairs
                amounts = self._constant(f"{out.name}.pads", [p[0] for p in pairs] + [p[1] for p in pairs], np.int64)
                self._node("Pad", [name, amounts, self._parameters(out)[1]], out.name)
            case "max_pool2d":
                padding = [*at["padding"], *at["padding"]]
                self._node(
                    "MaxPool",
                    [name],
                    out.name,
                    kernel_shape=at["kernel"],
                    strides=at["stride"],
                    pads=padding,
                    dilations=at["dilation"],
                )


def _container(info: TensorInfo) -> Any:
    """Numpy type that holds a tensor's codes in the file."""
    if info.format.kind == "uint":
        return np.uint8 if info.format.width <= 8 else np.uint16
    return np.int8 if info.format.width <= 8 else np.int16
