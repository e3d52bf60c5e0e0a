"""What every ONNX file of an IntegerProgram has in common: its graph, its ends, and the operations that only move codes.

The program's values keep their names: a tensor of codes is a tensor of the same codes in the file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class OnnxWriter(ABC):
    """A program as an ONNX graph; how it computes is for ``_compute`` to say, an instruction at a time."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.real: dict[str, str] = {program.input: "input"}  # program tensor -> name of its float values

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """The file (atomically), with ``metadata`` as the model's properties.

        Input ``input`` float32 (batch, ...), output ``output`` float32 (batch, ...). Raises ExportError, naming the layer, for a
        program with a float region.
        """
        model = self._model()
        helper.set_model_props(model, {"haqsearch.program": self.program.name, **metadata})
        onnx.checker.check_model(model, full_check=True)
        with replacing(path) as temporary:
            onnx.save(model, str(temporary))

    @abstractmethod
    def _compute(self, step: Instruction, outputs: list[TensorInfo]) -> None:
        """Add the nodes of an instruction that computes: codes in, codes of ``outputs`` out."""

    def _model(self) -> onnx.ModelProto:
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

    def _zero_point(self, info: TensorInfo) -> str:
        """Name of a tensor's zero point."""
        return self._constant(f"{info.name}.zero_point", info.zero_point, container(info))

    def _parameters(self, info: TensorInfo) -> list[str]:
        """Names of the scale and the zero point of a tensor."""
        return [self._constant(f"{info.name}.scale", info.scale, np.float32), self._zero_point(info)]

    def _quantized(self, real: str, info: TensorInfo) -> None:
        """QuantizeLinear of the float value ``real`` into the program's tensor ``info``, behind a Clip if it is narrower."""
        limits = np.iinfo(container(info))
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
            case "reshape" | "slice" | "pad" | "max_pool2d":
                self._move(step, outputs[0])
            case "dequantize":
                self.real[step.outputs[0]] = self._dequantized(step.inputs[0])
            case "float":
                layer = step.layer or step.attributes["target"]
                raise ExportError(
                    f"{layer}: runs in float32, which this ONNX export cannot express; model.safetensors holds the program"
                )
            case _:
                self._compute(step, outputs)

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
                self._node("Pad", [name, amounts, self._zero_point(out)], out.name)
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


def container(info: TensorInfo) -> Any:
    """Numpy type that holds a tensor's codes in the file."""
    if info.format.kind == "uint":
        return np.uint8 if info.format.width <= 8 else np.uint16
    return np.int8 if info.format.width <= 8 else np.int16
