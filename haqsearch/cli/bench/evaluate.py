"""haqsearch bench evaluate: scoring a policy on the integer kernels, against fake quantization and float32 in torch.

All of them run the same network with batch norm folded, channels last, on the same images. ``fake_quant`` is what other
tools score policies with: the same scales and clamps, simulated in float32 by torch's operator, weights quantized
beforehand; ``fake_quant_steps`` the same by single vectorized operations, which not every tool does, but could.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from haqsearch.cli.bench.timing import Row, Turns, compare, report, timer

if TYPE_CHECKING:
    from torch import Tensor

    from haqsearch.cli.bench.machine import Request
    from haqsearch.evaluate import Prepared
    from haqsearch.graph import Graph
    from haqsearch.runtime import IntegerProgram, TensorInfo
    from haqsearch.spec import Policy

_BATCH = 50
_POLICIES = ("w8a8", "w8a7", "w6a6", "w4a4", "mixed")
_LARGE = 10_000_000  # codes of images that take seconds of a network, and whose times vary little
_WINDOWS = 8  # of threads against one: a virtual machine's second processor comes and goes for seconds at a time


def evaluate(request: Request) -> dict[str, Any]:
    """Rows for every policy, baseline and number of threads; threads against one; one changed layer against none."""
    import torch

    assembly = request.assembly()
    prepared, x = assembly.prepared, assembly.splits.search[0][:_BATCH].contiguous()
    title = f"{assembly.model_name}, batch {len(x)}"
    before = torch.get_num_threads()
    rows: list[Row] = []
    try:
        with torch.no_grad():
            for name in _POLICIES:
                if request.only in f"{title} {name}":
                    policy = mixed_or_uniform(prepared, name)
                    for threads in request.threads:
                        torch.set_num_threads(threads)
                        rows += _against_torch(prepared, policy, x, (title, name, threads), request.repeats)
                    rows.append(_against_unchanged(prepared, policy, x, (assembly.model_name, name), request.repeats))
            rows += _against_one_thread(prepared, x, title, request)
    finally:
        torch.set_num_threads(before)
    return report(rows, f"evaluate-{assembly.model_name}", request.folder)


def mixed_or_uniform(prepared: Prepared, name: str) -> Policy:
    """``name`` for every layer; "mixed": from 3 to 8 bits, layer by layer in turn."""
    from haqsearch.spec import Choice, Policy

    if name != "mixed":
        return Policy.uniform(prepared.spec, Choice.parse(name))
    policy = Policy.uniform(prepared.spec, Choice.parse("w8a8"))
    for i, layer in enumerate(layer for layer in prepared.spec.layers if layer.quantizable):
        choice = Choice.parse(f"w{3 + i % 6}a{3 + i * 5 % 6}")
        for tied in _tied(prepared, layer.name):
            policy = policy.replace(tied, activation=choice.activation)
        policy = policy.replace(layer.name, weight=choice.weight)
    return policy


def _against_torch(
    prepared: Prepared, policy: Policy, x: Tensor, where: tuple[str, str, int], repeats: int
) -> list[Row]:
    from haqsearch.runtime import run_program

    program = prepared.lower(policy)
    baselines = {
        "fake_quant": fake_quantized(program),
        "fake_quant_steps": fake_quantized(program, in_steps=True),
        "float32": float32(prepared.graph),
    }
    title, name, threads = where
    rows = []
    for baseline, theirs in baselines.items():
        figures = compare(timer(lambda: run_program(program, x)), timer(partial(theirs, x)), repeats)
        rows.append(Row(title, name, baseline, threads, **figures))  # type: ignore[arg-type]
    return rows


def _against_one_thread(prepared: Prepared, x: Tensor, title: str, request: Request) -> list[Row]:
    """More threads against one, the policies in turn, in several windows of ``repeats`` turns each."""
    import torch

    from haqsearch.runtime import run_program

    def at(threads: int, program: IntegerProgram) -> Callable[[], Any]:
        def run() -> None:
            torch.set_num_threads(threads)
            run_program(program, x)

        return run

    turns: dict[tuple[str, int], Turns] = {}
    for name in _POLICIES:
        if request.only in f"{title} {name}":
            program = prepared.lower(mixed_or_uniform(prepared, name))
            for threads in request.threads:
                if threads > 1:
                    turns[name, threads] = Turns(timer(at(threads, program)), timer(at(1, program)))
    for _ in range(_WINDOWS):
        for one in turns.values():
            one.take(request.repeats)
    return [
        Row(title, name, "one_thread", threads, **one.figures())  # type: ignore[arg-type]
        for (name, threads), one in turns.items()
    ]


def _against_unchanged(prepared: Prepared, policy: Policy, x: Tensor, where: tuple[str, str], repeats: int) -> Row:
    """``unchanged``: a new policy that differs in one layer, lowered, packed and run, against running the same policy's program.

    0.95 means 5 % more time. One thread, on as many images as a search scores a policy by.
    """
    from dataclasses import replace
    from itertools import tee
    from time import perf_counter

    import torch

    from haqsearch.runtime import run_program
    from haqsearch.runtime.pieces import Memo

    torch.set_num_threads(1)
    images = x.repeat(-(-1000 // len(x)), *[1] * (x.ndim - 1))
    prepared.lower(policy)
    fresh, same = tee(_changes(prepared, policy))  # both of a turn take the next one, whichever is first
    apart = replace(prepared, memo=Memo())  # what is lowered here does not make lowering there cheaper

    def changed() -> None:
        run_program(prepared.lower(next(fresh)), images)

    def unchanged() -> float:
        program = apart.lower(next(same))
        run_program(program, images)  # packs
        start = perf_counter()
        run_program(program, images)
        return perf_counter() - start

    repeats = min(repeats, 3) if images.numel() > _LARGE else repeats
    figures = compare(timer(changed), unchanged, repeats)
    return Row(f"{where[0]}, {len(images)} images", where[1], "unchanged", 1, **figures)  # type: ignore[arg-type]


def _changes(prepared: Prepared, policy: Policy) -> Any:
    """Policies that differ from ``policy`` in one layer's widths, none like an earlier one as long as there are new ones."""
    from itertools import cycle

    from haqsearch.spec import Choice

    layers = [layer.name for layer in prepared.spec.layers if layer.quantizable][1:-1]
    changes = []
    for width in (7, 5, 6, 3, 4, 2, 8):
        for layer in layers:
            choice = Choice.parse(f"w{width}a{max(width, 3)}")
            prepared.weight(layer, choice.weight)  # as in a search, where weights are rounded once, beforehand
            changed = policy.replace(layer, weight=choice.weight)
            for tied in _tied(prepared, layer):
                changed = changed.replace(tied, activation=choice.activation)
            changes.append(changed)
    return cycle(changes)


def _tied(prepared: Prepared, layer: str) -> tuple[str, ...]:
    """The layers that read the same value as ``layer``, itself among them."""
    return next(layers for layers in prepared.plan.readers.values() if layer in layers)


def float32(graph: Graph) -> Callable[[Tensor], Tensor]:
    """The folded network in float32, channels last."""
    from dataclasses import replace

    from haqsearch.graph import run_float

    parameters = {key: _channels_last(value) for key, value in graph.parameters.items()}
    laid_out = replace(graph, parameters=parameters)
    return lambda x: run_float(laid_out, _channels_last(x))


def fake_quantized(program: IntegerProgram, in_steps: bool = False) -> Callable[[Tensor], Tensor]:
    """``program`` simulated in float32: dequantized weights, every value rounded to its format.

    By torch's own operator; ``in_steps``: by division, rounding, clamp and multiplication one after the other, which torch
    runs in vectors where its operator does not.
    """
    import torch
    import torch.nn.functional as F

    weights: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for step in program.instructions:
        if step.weight_format is not None:
            codes, scale = (program.constants[f"{step.name}.{kind}"] for kind in ("weight", "weight_scale"))
            weights[step.name] = _channels_last(codes * scale.reshape(-1, *[1] * (codes.ndim - 1)))
            x_scale = program.tensors[step.inputs[0]].scale
            biases[step.name] = (program.constants[f"{step.name}.bias"] * scale.double() * x_scale).float()

    def by_operator(x: Tensor, info: TensorInfo) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, info.scale, info.zero_point, info.low, info.high)

    def by_steps(x: Tensor, info: TensorInfo) -> Tensor:
        low, high = info.low - info.zero_point, info.high - info.zero_point
        return (x / info.scale).round_().clamp_(low, high).mul_(info.scale)

    def run(x: Tensor, quantize: Callable[[Tensor, TensorInfo], Tensor]) -> Tensor:
        values = {program.input: _channels_last(x)}
        for step in program.instructions:
            at, inputs = step.attributes, [values[name] for name in step.inputs]
            match step.op:
                case "conv2d":
                    window = (at["stride"], at["padding"], at["dilation"], at["groups"])
                    y = F.conv2d(inputs[0], weights[step.name], biases[step.name], *window)
                case "linear":
                    y = F.linear(inputs[0], weights[step.name], biases[step.name])
                case "avg_pool2d":
                    y = F.avg_pool2d(inputs[0], at["kernel"], at["stride"], at["padding"])
                case "max_pool2d":
                    y = F.max_pool2d(inputs[0], at["kernel"], at["stride"], at["padding"], at["dilation"])
                case "add":
                    y = inputs[0] + inputs[1]
                case "concat":
                    y = torch.cat(inputs, at["dim"])
                case "slice":
                    y = inputs[0][(slice(None),) * at["dim"] + (slice(at["start"], at["end"], at["step"]),)]
                case "pad":
                    y = F.pad(inputs[0], at["amounts"])
                case "reshape":
                    y = inputs[0].reshape(len(x), *program.tensors[step.outputs[0]].shape or ())
                case "minimum":
                    info = program.tensors[step.outputs[0]]
                    high = (program.constants[f"{step.name}.high"] - info.zero_point) * info.scale
                    y = torch.minimum(inputs[0], high.float().reshape(-1, *[1] * (inputs[0].ndim - 2)))
                case _:
                    y = inputs[0]
            moves = step.op in {"slice", "pad", "reshape", "max_pool2d", "minimum", "dequantize"}
            for name in step.outputs:
                info = program.tensors[name]
                values[name] = y if moves or info.format.is_float else quantize(y, info)
        return values[program.output]

    return lambda x: run(x, by_steps if in_steps else by_operator)


def _channels_last(x: Tensor) -> Tensor:
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
