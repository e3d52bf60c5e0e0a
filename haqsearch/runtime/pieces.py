"""What one node becomes: a piece of a program, the same whenever its inputs, outputs and weights are the same.

A search changes few layers from one policy to the next; ``Memo`` keeps the pieces of the others, and with them whatever a
backend has packed for their constants.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph.ir import Node
from haqsearch.kernels.reference import INT32_MAX, accumulator_bound
from haqsearch.quant import QWeight, decompose, quantize
from haqsearch.quant.ties import odd_ratio
from haqsearch.runtime.program import Instruction, TensorInfo
from haqsearch.spec import Format


@dataclass
class Piece:
    """Instructions with the tensors and constants that are theirs. ``weight`` is kept so that its id stays its own."""

    instructions: list[Instruction] = field(default_factory=list)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    weight: QWeight | None = None
    verified: bool = False

    def tensor(self, info: TensorInfo) -> TensorInfo:
        self.tensors[info.name] = info
        return info

    def emit(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        self.instructions.append(Instruction(op, name, tuple(inputs), tuple(outputs), attributes or {}, **more))

    @property
    def nbytes(self) -> int:
        """Bytes of the constants, and as many again for what a backend packs of the weights."""
        packed = self.weight.codes.numel() if self.weight else 0
        return packed + sum(t.numel() * t.element_size() for t in self.constants.values())


class Memo:
    """Pieces and tensors of one graph under one set of ranges; the pieces used longest ago go first."""

    def __init__(self, largest_bytes: int = 512 * 2**20) -> None:
        self.largest_bytes = largest_bytes
        self._pieces: OrderedDict[Hashable, Piece] = OrderedDict()
        self._tensors: dict[tuple[str, Format], TensorInfo] = {}
        self._nbytes = 0

    def tensor(self, node: str, format: Format, make: Callable[[], TensorInfo]) -> TensorInfo:
        """The tensor that holds ``node`` in ``format``."""
        if (node, format) not in self._tensors:
            self._tensors[node, format] = make()
        return self._tensors[node, format]

    def piece(self, key: Hashable, make: Callable[[], Piece]) -> Piece:
        """The piece of ``key``, made if it is not there."""
        if key in self._pieces:
            self._pieces.move_to_end(key)
            return self._pieces[key]
        piece = self._pieces[key] = make()
        self._nbytes += piece.nbytes
        while self._nbytes > self.largest_bytes and len(self._pieces) > 1:
            self._nbytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece


def arithmetic(
    node: Node,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    stream: str,
    weight: QWeight | None,
    bias: Tensor | None,
) -> Piece:
    """Piece of a node that computes new values from ``inputs`` to each of ``outputs``.

    ``stream``: name of the output in the residual stream, from which the others are rescaled ("": there is none). One
    accumulation then has one scale to suit (see ``quant/ties.py``), and 256 codes are rescaled, not 2**32 sums.
    """
    piece = Piece(weight=weight)
    for out in outputs:
        piece.tensor(out)
    wanted = [out for out in outputs if out.name == stream] if stream else list(outputs)
    ceilings = _ceilings(node)
    direct = [piece.tensor(replace(out, name=f"{out.name}:open")) for out in wanted] if ceilings is not None else wanted
    _compute(piece, node, inputs, direct, weight, bias)
    if ceilings is not None:  # the high of an open tensor is the largest of its channels' bounds
        for out, result in zip(direct, wanted, strict=True):
            piece.constants[f"{result.name}.high"] = quantize(ceilings, result.params).to(torch.int64)
            piece.emit("minimum", result.name, [out.name], [result.name])
    for out in outputs:
        if out not in wanted:
            _epilogue(piece, out, torch.tensor([wanted[0].scale / out.scale], dtype=torch.float64))
            piece.emit("rescale", out.name, [wanted[0].name], [out.name])
    return piece


def _compute(
    piece: Piece,
    node: Node,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    weight: QWeight | None,
    bias: Tensor | None,
) -> None:
    names = ([t.name for t in inputs], [t.name for t in outputs])
    attributes = {key: value for key, value in node.attributes.items() if key not in {"clamp", "low", "high"}}
    scale = inputs[0].scale
    match node.op:
        case "conv2d" | "linear":
            assert weight is not None
            _layer(piece, node, inputs[0], outputs, weight, bias, attributes)
        case "avg_pool2d":
            window = attributes["kernel"][0] * attributes["kernel"][1]
            for out in outputs:
                _epilogue(piece, out, torch.tensor([scale / (out.scale * window)], dtype=torch.float64))
            piece.emit("avg_pool2d", node.name, *names, attributes)
        case "clamp":
            for out in outputs:
                _epilogue(piece, out, torch.tensor([scale / out.scale], dtype=torch.float64))
            piece.emit("rescale", node.name, *names)
        case "concat":
            for out in outputs:
                _epilogue(piece, out, torch.tensor([t.scale / out.scale for t in inputs], dtype=torch.float64))
            piece.emit("concat", node.name, *names, attributes)
        case "add":
            multipliers = [_summands(piece, inputs, out) for out in outputs]
            piece.emit("add", node.name, *names, {"multipliers": multipliers})
        case _:
            raise ModelError(f"{node.name}: cannot lower {node.op!r} to integers")


def _ceilings(node: Node) -> Tensor | None:
    """Upper bounds of the channels (float32) where each has its own."""
    _, high = node.attributes.get("clamp", (None, None))
    return torch.tensor(high, dtype=torch.float32) if isinstance(high, tuple) else None


def _layer(
    piece: Piece,
    node: Node,
    x: TensorInfo,
    outputs: Sequence[TensorInfo],
    weight: QWeight,
    real_bias: Tensor | None,
    attributes: dict[str, Any],
) -> None:
    scale = _tieless(weight, x, outputs[0], real_bias)
    accumulator_scale = scale.double() * x.scale
    bias = torch.zeros(weight.codes.shape[0], dtype=torch.int64)
    if real_bias is not None:
        real = real_bias.double()
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
        _epilogue(piece, out, accumulator_scale / out.scale, bias)
    piece.constants[f"{node.name}.weight"] = weight.codes
    piece.constants[f"{node.name}.weight_scale"] = scale
    piece.constants[f"{node.name}.bias"] = bias.to(torch.int32)
    attributes["bound"] = accumulator_bound(weight.codes, None, x.largest)
    names = ([x.name], [t.name for t in outputs])
    piece.emit(node.op, node.name, *names, attributes, layer=node.layer, weight_format=weight.format)


def _tieless(weight: QWeight, x: TensorInfo, out: TensorInfo, bias: Tensor | None) -> Tensor:
    """Weight scales (N,) moved a little so that no sum is rounded at a tie (see ``quant/ties.py``).

    However large the sum, the move changes it by less than a quarter of a code; where sums span thousands of codes, by a
    thirtieth of an 8-bit weight's step.
    """
    ratio = weight.scale.double() * x.scale / out.scale
    largest = weight.codes.double().abs().flatten(1).sum(1) * x.largest * ratio
    if bias is not None:
        largest += bias.double().abs() / out.scale
    tolerance = (0.25 / largest.clamp(min=1e-9)).clamp(2.0**-13, 2.0**-5)
    if weight.format.computed_as.granularity == "tensor":
        tolerance = tolerance.min().expand_as(tolerance)  # one scale stays one
    return (odd_ratio(ratio, tolerance) * out.scale / x.scale).float()


def _epilogue(piece: Piece, out: TensorInfo, multiplier: Tensor, bias: Tensor | None = None) -> None:
    m0, shift = decompose(multiplier)
    offset = torch.ones_like(shift) << (shift - 1)
    piece.constants[f"{out.name}.multiplier"] = m0
    piece.constants[f"{out.name}.shift"] = shift
    piece.constants[f"{out.name}.offset"] = offset if bias is None else offset + bias * m0


def _summands(piece: Piece, inputs: Sequence[TensorInfo], out: TensorInfo) -> list[int]:
    """Integer multipliers of the summands over one common shift, so that the sum is rounded once."""
    real = torch.tensor([t.scale / out.scale for t in inputs], dtype=torch.float64)
    _, shift = decompose(real.max().reshape(1))
    piece.constants[f"{out.name}.multiplier"] = torch.ones(1, dtype=torch.int64)
    piece.constants[f"{out.name}.shift"] = shift
    piece.constants[f"{out.name}.offset"] = torch.ones_like(shift) << (shift - 1)
    return [int(m) for m in torch.round(real * 2.0 ** float(shift)).to(torch.int64)]
