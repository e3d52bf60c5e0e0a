"""(graph, policy, ranges, weights) -> IntegerProgram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph.ir import MOVES, Graph, Node
from haqsearch.graph.plan import STREAM, Plan, make_plan
from haqsearch.kernels.reference import INT32_MAX, accumulator_bound
from haqsearch.quant import QParams, QWeight, decompose, quantize
from haqsearch.quant.ties import odd_ratio
from haqsearch.runtime.program import Instruction, IntegerProgram, TensorInfo
from haqsearch.runtime.verify import verify
from haqsearch.spec import FLOAT32, Format, Policy


class Ranges(Protocol):
    """Where lowering learns how a value is quantized."""

    def params(self, value: str, format: Format) -> QParams:
        """Quantization of the arithmetic node ``value`` in ``format``."""
        ...


WeightSource = Callable[[str, Format], QWeight]
"""Integer weights of (layer, format)."""


def lower(
    graph: Graph, policy: Policy, ranges: Ranges, weights: WeightSource, plan: Plan | None = None
) -> IntegerProgram:
    """Integer program of a prepared graph under ``policy``, verified.

    Raises ModelError, with the layer's name, if an accumulator could leave int32 or the policy leaves a quantizable layer
    in float.
    """
    program = _Lowering(graph, policy, ranges, weights, plan or make_plan(graph)).program()
    verify(program)
    return program


class _Lowering:
    def __init__(self, graph: Graph, policy: Policy, ranges: Ranges, weights: WeightSource, plan: Plan) -> None:
        self.graph, self.policy, self.ranges, self.weights, self.plan = graph, policy, ranges, weights, plan
        self.instructions: list[Instruction] = []
        self.tensors: dict[str, TensorInfo] = {}
        self.constants: dict[str, Tensor] = {}

    def program(self) -> IntegerProgram:
        for node in self.graph.nodes:
            if node.op == "input":
                self._input(node)
            elif node.op == "float":
                self._float(node)
            elif node.op in MOVES:
                self._move(node)
            else:
                self._arithmetic(node)
        slot = self.plan.slots[self.graph.output][-1]  # "output", or "float" where a float region ends the network
        return IntegerProgram(
            self.graph.name,
            tuple(self.instructions),
            self.tensors,
            self.constants,
            f"{self.graph.input.name}:float32",
            self._name(self.graph.output, slot),
        )

    # -- names, formats, tensors ----------------------------------------------------------------------------------

    def _format(self, name: str, slot: str) -> Format:
        format = self.plan.format(name, slot, self.policy)
        if slot == "layers" and format.is_float:
            owner = self.plan.owner[self.graph.source(name).name]
            raise ModelError(
                f"layer {owner!r}: an integer program cannot leave a quantizable layer in float32; give it widths"
            )
        return format

    def _name(self, name: str, slot: str) -> str:
        return f"{name}:{self._format(name, slot)}"

    def _read(self, reader: Node, name: str) -> str:
        return self._name(name, self.plan.slot(reader, name))

    def _formats(self, node: Node) -> list[Format]:
        """Formats the value of ``node`` is wanted in, each once."""
        return list(dict.fromkeys(self._format(node.name, slot) for slot in self.plan.slots[node.name]))

    def _quantized(self, node: Node, format: Format) -> TensorInfo:
        """Register the tensor that holds ``node`` in ``format``, its codes clamped by the activation fused behind it."""
        params = self.ranges.params(self.graph.source(node.name).name, format)
        low, high = format.code_min, format.code_max
        at = node.attributes
        bounds = (at["low"], at["high"]) if node.op == "clamp" else at.get("clamp", (None, None))
        codes = [
            None if b is None else int(quantize(torch.tensor(b, dtype=torch.float32), params).max()) for b in bounds
        ]
        low = low if codes[0] is None else max(low, codes[0])
        high = high if codes[1] is None else min(high, codes[1])
        info = TensorInfo(f"{node.name}:{format}", node.shape, format, params.scale, params.zero_point, low, high)
        self.tensors[info.name] = info
        return info

    def _emit(self, op: str, name: str, inputs: list[str], outputs: list[str], **more: Any) -> None:
        attributes = more.pop("attributes", {})
        self.instructions.append(Instruction(op, name, tuple(inputs), tuple(outputs), attributes, **more))

    # -- one kind of node each ------------------------------------------------------------------------------------

    def _input(self, node: Node) -> None:
        name = f"{node.name}:float32"
        self.tensors[name] = TensorInfo(name, node.shape, FLOAT32)
        self._quantize(node)

    def _quantize(self, node: Node) -> None:
        for format in self._formats(node):
            if not format.is_float:
                self._emit(
                    "quantize", f"{node.name}:{format}", [f"{node.name}:float32"], [self._quantized(node, format).name]
                )

    def _float(self, node: Node) -> None:
        names = {}
        for name in node.inputs:
            read = self._read(node, name)
            if not self.tensors[read].format.is_float:
                real = f"{name}:dequantized"
                if real not in self.tensors:
                    self.tensors[real] = TensorInfo(real, self.graph[name].shape, FLOAT32)
                    self._emit("dequantize", real, [read], [real])
                read = real
            names[name] = read
        output = f"{node.name}:float32"
        self.tensors[output] = TensorInfo(output, node.shape, FLOAT32)
        for key in node.parameters - set(node.attributes.get("affine", ())):
            self.constants[key] = self.graph.parameters[key]
        attributes = {key: node.attributes[key] for key in ("target", "arguments", "keywords")}
        self._emit(
            "float",
            node.name,
            list(names.values()),
            [output],
            attributes={**attributes, "names": names},
            layer=node.layer,
        )
        self._quantize(node)

    def _move(self, node: Node) -> None:
        for format in self._formats(node):
            source = self.tensors[f"{node.inputs[0]}:{format}"]
            name = f"{node.name}:{format}"
            low = min(source.low, source.zero_point) if node.op == "pad" else source.low  # padding is the zero point
            self.tensors[name] = TensorInfo(name, node.shape, format, source.scale, source.zero_point, low, source.high)
            self._emit(node.op, name, [source.name], [name], attributes=dict(node.attributes))

    def _arithmetic(self, node: Node) -> None:
        inputs = [self.tensors[self._read(node, name)] for name in node.inputs]
        outputs = [self._quantized(node, format) for format in self._formats(node)]
        wanted, narrower = self._split_stream(node, outputs)
        ceilings = self._ceilings(node)
        outputs = wanted if ceilings is None else [self._open(out) for out in wanted]
        names = ([t.name for t in inputs], [t.name for t in outputs])
        attributes = {key: value for key, value in node.attributes.items() if key not in {"clamp", "low", "high"}}
        match node.op:
            case "conv2d" | "linear":
                self._layer(node, inputs[0], outputs, attributes)
            case "avg_pool2d":
                window = attributes["kernel"][0] * attributes["kernel"][1]
                for out in outputs:
                    self._epilogue(out, torch.tensor([inputs[0].scale / (out.scale * window)], dtype=torch.float64))
                self._emit("avg_pool2d", node.name, *names, attributes=attributes)
            case "clamp":
                for out in outputs:
                    self._epilogue(out, torch.tensor([inputs[0].scale / out.scale], dtype=torch.float64))
                self._emit("rescale", node.name, *names)
            case "concat":
                for out in outputs:
                    self._epilogue(out, torch.tensor([t.scale / out.scale for t in inputs], dtype=torch.float64))
                self._emit("concat", node.name, *names, attributes=attributes)
            case "add":
                multipliers = [self._add(inputs, out) for out in outputs]
                self._emit("add", node.name, *names, attributes={"multipliers": multipliers})
            case _:
                raise ModelError(f"{node.name}: cannot lower {node.op!r} to integers")
        for out, result in zip(outputs, wanted, strict=True):
            if ceilings is not None:
                self.constants[f"{result.name}.high"] = quantize(ceilings, result.params).to(torch.int64)
                self._emit("minimum", result.name, [out.name], [result.name])
        for out in narrower:
            self._epilogue(out, torch.tensor([wanted[0].scale / out.scale], dtype=torch.float64))
            self._emit("rescale", out.name, [wanted[0].name], [out.name])

    @staticmethod
    def _ceilings(node: Node) -> Tensor | None:
        """Upper bounds of the channels (float32) where each has its own."""
        _, high = node.attributes.get("clamp", (None, None))
        return torch.tensor(high, dtype=torch.float32) if isinstance(high, tuple) else None

    def _open(self, result: TensorInfo) -> TensorInfo:
        """Register the tensor that ``result`` is before each channel's own bound; its ``high`` is the largest of them."""
        info = replace(result, name=f"{result.name}:open")
        self.tensors[info.name] = info
        return info

    def _split_stream(self, node: Node, outputs: list[TensorInfo]) -> tuple[list[TensorInfo], list[TensorInfo]]:
        """What the operation itself gives, and what is rescaled from it: a value kept twice is narrowed from its stream.

        One accumulation then has one scale to suit (see ``quant/ties.py``), and 256 codes are rescaled, not 2**32 sums.
        """
        if "stream" not in self.plan.slots[node.name]:
            return outputs, []
        stream = self.tensors[f"{node.name}:{STREAM}"]
        return [stream], [out for out in outputs if out is not stream]

    def _layer(self, node: Node, x: TensorInfo, outputs: list[TensorInfo], attributes: dict[str, Any]) -> None:
        weight = self.weights(node.layer, self.policy[node.layer].weight)
        scale = self._tieless(node, weight, x, outputs[0])
        accumulator_scale = scale.double() * x.scale
        bias = torch.zeros(weight.codes.shape[0], dtype=torch.int64)
        if node.bias:
            real = self.graph.parameters[node.bias].double()
            if weight.bias_correction is not None:
                real = real + weight.bias_correction
            bias = torch.round(real / accumulator_scale).clamp(-INT32_MAX, INT32_MAX).to(torch.int64)
        bound = accumulator_bound(weight.codes, bias, x.largest)
        if bound > INT32_MAX:
            raise ModelError(
                f"layer {node.layer!r}: an accumulator can reach {bound}, beyond int32, with {weight.format} weights "
                f"and {x.format} activations; give this layer fewer bits"
            )
        for out in outputs:
            self._epilogue(out, accumulator_scale / out.scale, bias)
        self.constants[f"{node.name}.weight"] = weight.codes
        self.constants[f"{node.name}.weight_scale"] = scale
        self.constants[f"{node.name}.bias"] = bias.to(torch.int32)
        attributes["bound"] = accumulator_bound(weight.codes, None, x.largest)
        self._emit(
            node.op,
            node.name,
            [x.name],
            [t.name for t in outputs],
            attributes=attributes,
            layer=node.layer,
            weight_format=weight.format,
        )

    def _tieless(self, node: Node, weight: QWeight, x: TensorInfo, out: TensorInfo) -> Tensor:
        """Weight scales (N,) moved a little so that no sum is rounded at a tie (see ``quant/ties.py``).

        However large the sum, the move changes it by less than a quarter of a code; where sums span thousands of codes, by a
        thirtieth of an 8-bit weight's step.
        """
        ratio = weight.scale.double() * x.scale / out.scale
        largest = weight.codes.double().abs().flatten(1).sum(1) * x.largest * ratio
        if node.bias:
            largest += self.graph.parameters[node.bias].double().abs() / out.scale
        tolerance = (0.25 / largest.clamp(min=1e-9)).clamp(2.0**-13, 2.0**-5)
        if weight.format.granularity == "tensor":
            tolerance = tolerance.min().expand_as(tolerance)  # one scale stays one
        return (odd_ratio(ratio, tolerance) * out.scale / x.scale).float()

    def _epilogue(self, out: TensorInfo, multiplier: Tensor, bias: Tensor | None = None) -> None:
        m0, shift = decompose(multiplier)
        offset = torch.ones_like(shift) << (shift - 1)
        self.constants[f"{out.name}.multiplier"] = m0
        self.constants[f"{out.name}.shift"] = shift
        self.constants[f"{out.name}.offset"] = offset if bias is None else offset + bias * m0

    def _add(self, inputs: list[TensorInfo], out: TensorInfo) -> list[int]:
        """Integer multipliers of the summands over one common shift, so that the sum is rounded once."""
        real = torch.tensor([t.scale / out.scale for t in inputs], dtype=torch.float64)
        _, shift = decompose(real.max().reshape(1))
        self.constants[f"{out.name}.multiplier"] = torch.ones(1, dtype=torch.int64)
        self.constants[f"{out.name}.shift"] = shift
        self.constants[f"{out.name}.offset"] = torch.ones_like(shift) << (shift - 1)
        return [int(m) for m in torch.round(real * 2.0 ** float(shift)).to(torch.int64)]
