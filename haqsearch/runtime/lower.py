"""(graph, policy, ranges, weights) -> IntegerProgram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from haqsearch.errors import ModelError
from haqsearch.graph.ir import LAYER_OPS, MOVES, Graph, Node
from haqsearch.graph.plan import STREAM, Plan, make_plan
from haqsearch.quant import QParams, QWeight, quantize
from haqsearch.runtime.pieces import Memo, Piece, arithmetic
from haqsearch.runtime.program import IntegerProgram, TensorInfo
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
    graph: Graph,
    policy: Policy,
    ranges: Ranges,
    weights: WeightSource,
    plan: Plan | None = None,
    memo: Memo | None = None,
) -> IntegerProgram:
    """Integer program of a prepared graph under ``policy``, verified.

    ``memo`` keeps what earlier calls made with the same graph, ranges and plan, so that a policy costs only what is new in it.

    Raises ModelError, with the layer's name, if an accumulator could leave int32 or the policy leaves a quantizable layer
    in float.
    """
    lowering = _Lowering(graph, policy, ranges, weights, plan or make_plan(graph), memo or Memo())
    program = lowering.program()
    verify(program, {id(step) for piece in lowering.pieces if piece.verified for step in piece.instructions})
    for piece in lowering.pieces:
        piece.verified = True
    return program


class _Lowering:
    def __init__(
        self, graph: Graph, policy: Policy, ranges: Ranges, weights: WeightSource, plan: Plan, memo: Memo
    ) -> None:
        self.graph, self.policy, self.ranges, self.weights, self.plan = graph, policy, ranges, weights, plan
        self.memo = memo
        self.pieces: list[Piece] = []
        self.tensors: dict[str, TensorInfo] = {}

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
            tuple(step for piece in self.pieces for step in piece.instructions),
            self.tensors,
            {key: value for piece in self.pieces for key, value in piece.constants.items()},
            f"{self.graph.input.name}:float32",
            self._name(self.graph.output, slot),
        )

    def _add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.tensors.update(piece.tensors)

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
        """The tensor that holds ``node`` in ``format``, its codes clamped by the activation fused behind it."""
        return self.memo.tensor(node.name, format, lambda: self._placed(node, format))

    def _placed(self, node: Node, format: Format) -> TensorInfo:
        params = self.ranges.params(self.graph.source(node.name).name, format)
        low, high = format.code_min, format.code_max
        at = node.attributes
        bounds = (at["low"], at["high"]) if node.op == "clamp" else at.get("clamp", (None, None))
        codes = [
            None if b is None else int(quantize(torch.tensor(b, dtype=torch.float32), params).max()) for b in bounds
        ]
        low = low if codes[0] is None else max(low, codes[0])
        high = high if codes[1] is None else min(high, codes[1])
        return TensorInfo(f"{node.name}:{format}", node.shape, format, params.scale, params.zero_point, low, high)

    # -- one kind of node each ------------------------------------------------------------------------------------

    def _input(self, node: Node) -> None:
        def make() -> Piece:
            piece = Piece()
            piece.tensor(TensorInfo(f"{node.name}:float32", node.shape, FLOAT32))
            self._quantize(piece, node)
            return piece

        self._add(self.memo.piece((node.name, tuple(self._formats(node))), make))

    def _quantize(self, piece: Piece, node: Node) -> None:
        for format in self._formats(node):
            if not format.is_float:
                out = piece.tensor(self._quantized(node, format))
                piece.emit("quantize", f"{node.name}:{format}", [f"{node.name}:float32"], [out.name])

    def _float(self, node: Node) -> None:
        inputs = tuple(self.tensors[self._read(node, name)] for name in node.inputs)
        known = tuple(f"{name}:dequantized" in self.tensors for name in node.inputs)
        self._add(self.memo.piece((node.name, inputs, known, tuple(self._formats(node))), lambda: self._region(node)))

    def _region(self, node: Node) -> Piece:
        piece, names = Piece(), {}
        for name in node.inputs:
            read = self._read(node, name)
            if not self.tensors[read].format.is_float:
                real = f"{name}:dequantized"
                if real not in self.tensors and real not in piece.tensors:
                    piece.tensor(TensorInfo(real, self.graph[name].shape, FLOAT32))
                    piece.emit("dequantize", real, [read], [real])
                read = real
            names[name] = read
        output = piece.tensor(TensorInfo(f"{node.name}:float32", node.shape, FLOAT32))
        for key in node.parameters - set(node.attributes.get("affine", ())):
            piece.constants[key] = self.graph.parameters[key]
        attributes = {key: node.attributes[key] for key in ("target", "arguments", "keywords")}
        attributes["names"] = names
        piece.emit("float", node.name, list(names.values()), [output.name], attributes, layer=node.layer)
        self._quantize(piece, node)
        return piece

    def _move(self, node: Node) -> None:
        sources = tuple(self.tensors[f"{node.inputs[0]}:{format}"] for format in self._formats(node))

        def make() -> Piece:
            piece = Piece()
            for source in sources:
                low = (
                    min(source.low, source.zero_point) if node.op == "pad" else source.low
                )  # padding is the zero point
                out = piece.tensor(replace(source, name=f"{node.name}:{source.format}", shape=node.shape, low=low))
                piece.emit(node.op, out.name, [source.name], [out.name], dict(node.attributes))
            return piece

        self._add(self.memo.piece((node.name, sources), make))

    def _arithmetic(self, node: Node) -> None:
        inputs = tuple(self.tensors[self._read(node, name)] for name in node.inputs)
        outputs = tuple(self._quantized(node, format) for format in self._formats(node))
        stream = f"{node.name}:{STREAM}" if "stream" in self.plan.slots[node.name] else ""
        weight = self.weights(node.layer, self.policy[node.layer].weight) if node.op in LAYER_OPS else None
        bias = self.graph.parameters[node.bias] if node.bias else None
        key = (node.name, inputs, outputs, id(weight))
        self._add(self.memo.piece(key, lambda: arithmetic(node, inputs, outputs, stream, weight, bias)))
