"""Run an IntegerProgram on a kernel backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph.execute import fill, resolve
from haqsearch.kernels import best_backend, get_backend
from haqsearch.quant import dequantize, quantize, storage_dtype
from haqsearch.runtime.program import Instruction, IntegerProgram


def run_program(program: IntegerProgram, x: Tensor, backend: str | None = None) -> Tensor:
    """Real outputs (float32) for real inputs ``x`` (B, *input shape): quantize, integers throughout, dequantize."""
    codes = run_codes(program, x, backend)
    info = program.output_info
    return codes if info.format.is_float else dequantize(codes, info.params)


def run_codes(program: IntegerProgram, x: Tensor, backend: str | None = None) -> Tensor:
    """Output codes for real inputs ``x`` (B, *input shape), the same on every backend.

    ``backend``: a name of ``haqsearch.kernels.BACKENDS``; the best one of this installation if left out.
    Raises ModelError if ``x`` has another shape or is no float32.
    """
    expected = program.tensors[program.input].shape
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != expected:
        raise ModelError(
            f"{program.name} takes float32 of shape (batch, *{expected}), not {x.dtype} of {tuple(x.shape)}"
        )
    values = run_part(program, {program.input: x}, backend=backend or best_backend(x.device.type))
    codes: Tensor = values[program.output]
    return codes


def run_part(
    program: IntegerProgram,
    values: Mapping[str, Any],
    start: int = 0,
    stop: int | None = None,
    backend: str = "reference",
) -> dict[str, Any]:
    """Run the instructions from ``start`` to before ``stop`` (None: to the end); what they leave for later ones.

    ``values`` are those that earlier instructions leave: of the input, real; of all others, codes. The network's output is left
    for ever.
    """
    stop = len(program.instructions) if stop is None else stop
    found = dict(values)
    if backend == "native":
        from haqsearch.runtime.native import compiled

        batch = max((len(value) for value in values.values() if isinstance(value, Tensor) and value.ndim), default=0)
        compiled(program, batch, start, stop).run(found)
        if stop == len(program.instructions):
            return {program.output: found[program.output]}
        last = last_readers(program)
        return {name: v for name, v in found.items() if last.get(name, -1) >= stop or name == program.output}
    last = last_readers(program)
    for i, step in enumerate(program.instructions[start:stop], start):
        run_step(program, step, found, backend)
        for name in step.inputs:
            if last[name] == i and name != program.output:
                found.pop(name, None)
    return found


def last_readers(program: IntegerProgram) -> dict[str, int]:
    """Value -> index of the last instruction that reads it."""
    return {name: i for i, step in enumerate(program.instructions) for name in step.inputs}


def run_step(program: IntegerProgram, step: Instruction, values: dict[str, Any], backend: str) -> None:
    """Run one instruction: takes its inputs from ``values``, and puts its outputs there."""
    results = _run(program, step, [values[name] for name in step.inputs], backend)
    values.update(zip(step.outputs, results, strict=True))


def epilogue(program: IntegerProgram, name: str, index: int | None = None) -> tuple[Any, ...]:
    """The epilogue of tensor ``name`` as the operators take it; ``index`` picks the summand of a concatenation."""
    info = program.tensors[name]
    constants = [program.constants[f"{name}.{kind}"] for kind in ("multiplier", "offset", "shift")]
    if index is not None:
        constants = [c[index : index + 1] for c in constants]
    return (*constants, info.zero_point, info.low, info.high, storage_dtype(info.format))


def _run(program: IntegerProgram, step: Instruction, inputs: list[Any], backend: str) -> list[Any]:
    at, kernels = step.attributes, get_backend(backend)
    infos = [program.tensors[name] for name in step.inputs]
    outputs = [program.tensors[name] for name in step.outputs]
    zero_points = [info.zero_point for info in infos]
    ends = [epilogue(program, name) if f"{name}.shift" in program.constants else () for name in step.outputs]
    x: Any = inputs[0] if inputs else None
    match step.op:
        case "quantize":
            return [quantize(x, outputs[0].params).clamp_(outputs[0].low, outputs[0].high)]
        case "dequantize":
            return [dequantize(x, infos[0].params)]
        case "conv2d" | "linear":
            weight, bits = (
                program.constants[f"{step.name}.weight"],
                step.weight_format.computed_as.width if step.weight_format else 8,
            )
            window = [at[key] for key in ("stride", "padding", "dilation", "groups")] if step.op == "conv2d" else []
            kernel = getattr(kernels, step.op)
            return [kernel(x, zero_points[0], weight, bits, *window, at["bound"], *end) for end in ends]
        case "avg_pool2d":
            window = [at[key] for key in ("kernel", "stride", "padding")]
            return [kernels.average_pool2d(x, zero_points[0], *window, *end) for end in ends]
        case "rescale":
            return [kernels.weighted_sum([x], zero_points, [1], *end) for end in ends]
        case "add":
            return [
                kernels.weighted_sum(inputs, zero_points, multipliers, *end)
                for end, multipliers in zip(ends, at["multipliers"], strict=True)
            ]
        case "concat":
            return [
                torch.cat(
                    [
                        kernels.weighted_sum([value], [zero_point], [1], *epilogue(program, name, i))
                        for i, (value, zero_point) in enumerate(zip(inputs, zero_points, strict=True))
                    ],
                    at["dim"],
                )
                for name in step.outputs
            ]
        case "max_pool2d":
            return [kernels.max_pool2d(x, at["kernel"], at["stride"], at["padding"], at["dilation"])]
        case "minimum":
            high = program.constants[f"{step.name}.high"].to(x.dtype)
            return [torch.minimum(x, high.reshape(-1, *[1] * (x.ndim - 2)))]
        case "slice":
            return [x[(slice(None),) * at["dim"] + (slice(at["start"], at["end"], at["step"]),)]]
        case "pad":
            return [F.pad(x, at["amounts"], value=outputs[0].zero_point)]
        case "reshape":
            return [x.reshape(x.shape[0], *outputs[0].shape or ())]
        case "float":
            named = dict(zip(at["names"], inputs, strict=True))
            keywords = {key: fill(value, named, program.constants) for key, value in at["keywords"].items()}
            return [resolve(at["target"])(*fill(at["arguments"], named, program.constants), **keywords)]
        case _:
            raise ModelError(f"{step.name}: no such integer operation: {step.op!r}")
