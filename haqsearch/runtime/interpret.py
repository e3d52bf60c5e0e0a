"""Run an IntegerProgram on a kernel backend."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph.execute import fill, resolve
from haqsearch.kernels import get_backend
from haqsearch.quant import dequantize, quantize, storage_dtype
from haqsearch.runtime.program import Instruction, IntegerProgram


def run_program(program: IntegerProgram, x: Tensor, backend: ModuleType | None = None) -> Tensor:
    """Real outputs (float32) for real inputs ``x`` (B, *input shape): quantize, integers throughout, dequantize."""
    codes = run_codes(program, x, backend)
    info = program.output_info
    return codes if info.format.is_float else dequantize(codes, info.params)


def run_codes(program: IntegerProgram, x: Tensor, backend: ModuleType | None = None) -> Tensor:
    """Output codes for real inputs ``x`` (B, *input shape). Raises ModelError if ``x`` has another shape or is no float32."""
    expected = program.tensors[program.input].shape
    if x.dtype != torch.float32 or tuple(x.shape[1:]) != expected:
        raise ModelError(
            f"{program.name} takes float32 of shape (batch, *{expected}), not {x.dtype} of {tuple(x.shape)}"
        )
    backend = backend or get_backend()
    values: dict[str, Any] = {program.input: x}
    last_reader = {name: i for i, instruction in enumerate(program.instructions) for name in instruction.inputs}
    for i, instruction in enumerate(program.instructions):
        inputs = [values[name] for name in instruction.inputs]
        for name, value in zip(instruction.outputs, _run(program, instruction, inputs, backend), strict=True):
            values[name] = value
        for name in instruction.inputs:
            if last_reader[name] == i and name != program.output:
                values.pop(name, None)
    return values[program.output]


def _run(program: IntegerProgram, step: Instruction, inputs: list[Any], backend: ModuleType) -> list[Any]:
    at = step.attributes
    infos = [program.tensors[name] for name in step.inputs]
    outputs = [program.tensors[name] for name in step.outputs]
    x: Any = inputs[0] if inputs else None
    match step.op:
        case "quantize":
            return [quantize(x, outputs[0].params).clamp_(outputs[0].low, outputs[0].high)]
        case "dequantize":
            return [dequantize(x, infos[0].params)]
        case "conv2d":
            weight = program.constants[f"{step.name}.weight"]
            acc = backend.conv2d(
                x, infos[0].zero_point, weight, at["stride"], at["padding"], at["dilation"], at["groups"], at["bound"]
            )
        case "linear":
            acc = backend.linear(x, infos[0].zero_point, program.constants[f"{step.name}.weight"], at["bound"])
        case "avg_pool2d":
            acc = backend.window_sum(x, infos[0].zero_point, at["kernel"], at["stride"], at["padding"])
        case "rescale":
            acc = backend.weighted_sum([x], [infos[0].zero_point], [1])
        case "add":
            zero_points = [info.zero_point for info in infos]
            return [
                _epilogue(program, backend, backend.weighted_sum(inputs, zero_points, multipliers), name)
                for name, multipliers in zip(step.outputs, at["multipliers"], strict=True)
            ]
        case "concat":
            return [
                torch.cat(
                    [
                        _epilogue(program, backend, backend.weighted_sum([value], [info.zero_point], [1]), name, i)
                        for i, (value, info) in enumerate(zip(inputs, infos, strict=True))
                    ],
                    at["dim"],
                )
                for name in step.outputs
            ]
        case "max_pool2d":
            return [backend.max_pool2d(x, at["kernel"], at["stride"], at["padding"], at["dilation"])]
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
            values = {node: value for (node, _), value in zip(at["names"].items(), inputs, strict=True)}
            keywords = {key: fill(value, values, program.constants) for key, value in at["keywords"].items()}
            return [resolve(at["target"])(*fill(at["arguments"], values, program.constants), **keywords)]
        case _:
            raise ModelError(f"{step.name}: no such integer operation: {step.op!r}")
    return [_epilogue(program, backend, acc, name) for name in step.outputs]


def _epilogue(program: IntegerProgram, backend: ModuleType, acc: Tensor, name: str, index: int | None = None) -> Tensor:
    """Accumulators to the codes of tensor ``name``; ``index`` picks the summand of a concatenation."""
    info = program.tensors[name]
    constants = [program.constants[f"{name}.{kind}"] for kind in ("offset", "multiplier", "shift")]
    if index is not None:
        constants = [c[index : index + 1] for c in constants]
    return backend.epilogue(acc, *constants, info.zero_point, info.low, info.high, storage_dtype(info.format))
