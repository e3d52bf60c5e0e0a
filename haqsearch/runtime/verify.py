"""The executable specification of an IntegerProgram.

Each check is a sentence about every program. Lowering ends with it, so an interpreter or exporter can rely on all of them.
"""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor

from haqsearch.errors import DataError, ModelError
from haqsearch.kernels.reference import INT32_MAX, accumulator_bound
from haqsearch.quant.steps import stored
from haqsearch.runtime.program import Instruction, IntegerProgram
from haqsearch.spec import Format

_OPS = {
    "quantize",
    "dequantize",
    "conv2d",
    "linear",
    "avg_pool2d",
    "add",
    "rescale",
    "concat",
    "max_pool2d",
    "minimum",
    "slice",
    "pad",
    "reshape",
    "float",
}
_MOVES = {"max_pool2d", "minimum", "slice", "pad", "reshape"}
_REQUANTIZED = {"conv2d", "linear", "avg_pool2d", "add", "rescale", "concat"}


def verify(program: IntegerProgram, known: Set[int] = frozenset()) -> None:
    """Raise ModelError, naming the instruction, unless every sentence below holds of ``program``.

    ``known``: ids of instructions that were checked before with these very tensors and constants; how they are connected is
    checked all the same.
    """
    _require(program.input in program.tensors, program.name, "its input has no TensorInfo")
    defined = {program.input}
    for step in program.instructions:
        where = f"{program.name}: {step.layer or step.name}"
        _require(step.op in _OPS, where, f"unknown operation {step.op!r}")
        _require(set(step.inputs) <= defined, where, "reads a value that no earlier instruction gives")
        _require(not set(step.outputs) & defined, where, "gives a value that is there already")
        _require(set(step.outputs) <= program.tensors.keys(), where, "gives a value without a TensorInfo")
        defined.update(step.outputs)
        if id(step) in known:
            continue
        _check_formats(program, step, where)
        missing = sorted(_constants(step) - program.constants.keys())
        _require(not missing, where, f"the constant {missing[:1]} is missing")
        if step.op in {"conv2d", "linear"}:
            _check_layer(program, step, where)
        if step.op == "minimum":
            _check_ceilings(program, step, where)
        if step.op in _REQUANTIZED:
            _check_epilogues(program, step, where)
    _require(program.output in defined, program.name, "no instruction gives the output")
    for info in program.tensors.values():
        if not info.format.is_float:
            low, high = info.format.code_min, info.format.code_max
            _require(low <= info.low <= info.high <= high, info.name, "its clamp leaves the format's codes")
            _require(low <= info.zero_point <= high, info.name, "its zero point is no code")
            _require(info.scale > 0 and info.scale == info.params.scale, info.name, "its scale is no positive float32")


def _constants(step: Instruction) -> set[str]:
    """Keys of the constants an integer operation reads."""
    layer = {f"{step.name}.{kind}" for kind in ("weight", "weight_scale", "bias")}
    epilogues = {f"{name}.{kind}" for name in step.outputs for kind in ("multiplier", "shift", "offset")}
    if step.op == "minimum":
        return {f"{step.name}.high"}
    return (layer if step.op in {"conv2d", "linear"} else set()) | (epilogues if step.op in _REQUANTIZED else set())


def _check_formats(program: IntegerProgram, step: Instruction, where: str) -> None:
    floats_in = [program.tensors[name].format.is_float for name in step.inputs]
    floats_out = [program.tensors[name].format.is_float for name in step.outputs]
    expected = {"quantize": (True, False), "dequantize": (False, True), "float": (True, True)}.get(step.op)
    if step.op in _MOVES:
        expected = (floats_in[0], floats_in[0])
        source, result = program.tensors[step.inputs[0]], program.tensors[step.outputs[0]]
        same = (source.format, source.scale, source.zero_point) == (result.format, result.scale, result.zero_point)
        _require(same, where, "moves codes from one scale to another")
    wants_in, wants_out = expected or (False, False)
    _require(
        all(f == wants_in for f in floats_in) and all(f == wants_out for f in floats_out),
        where,
        "mixes floats and integers",
    )


def _check_layer(program: IntegerProgram, step: Instruction, where: str) -> None:
    x = program.tensors[step.inputs[0]]
    weight, bias = program.constants[f"{step.name}.weight"], program.constants[f"{step.name}.bias"]
    format = step.weight_format
    _require(
        format is not None and weight.dtype == torch.int8 and bias.dtype == torch.int32,
        where,
        "weights are not integers",
    )
    assert format is not None
    _require(
        int(weight.min()) >= format.code_min and int(weight.max()) <= format.code_max, where, f"a weight is no {format}"
    )
    if format.kind == "kmeans":
        _require(len(torch.unique(weight)) <= 2**format.width, where, f"more different weights than {format} has")
    if format.has_steps:
        _require(_can_be_stored(weight, format), where, f"its weights cannot be stored as {format}")
    _require(accumulator_bound(weight, bias, x.largest) <= INT32_MAX, where, "an accumulator can leave int32")
    _require(
        accumulator_bound(weight, None, x.largest) <= step.attributes["bound"],
        where,
        "the accumulator bound is too small",
    )


def _can_be_stored(weight: Tensor, format: Format) -> bool:
    try:
        stored(weight, format)
    except DataError:
        return False
    return True


def _check_ceilings(program: IntegerProgram, step: Instruction, where: str) -> None:
    high, out = program.constants[f"{step.name}.high"], program.tensors[step.outputs[0]]
    _require(high.dtype == torch.int64 and high.shape == (out.shape or ())[:1], where, "not one bound for each channel")
    _require(out.low <= int(high.min()) and int(high.max()) <= out.high, where, "a channel's bound leaves the clamp")


def _check_epilogues(program: IntegerProgram, step: Instruction, where: str) -> None:
    for name in step.outputs:
        multiplier, shift = (program.constants[f"{name}.{kind}"] for kind in ("multiplier", "shift"))
        offset = program.constants[f"{name}.offset"]
        integers = all(t.dtype == torch.int64 and t.shape == shift.shape for t in (multiplier, shift, offset))
        _require(integers, where, "an epilogue is not in integers")
        inside = bool(
            (multiplier >= 0).all() and (multiplier < 2**31).all() and (shift >= 1).all() and (shift <= 62).all()
        )
        _require(inside, where, "a multiplier or shift is out of range")


def _require(holds: bool, where: str, sentence: str) -> None:
    if not holds:
        raise ModelError(f"{where}: not a valid integer program: {sentence}")
