"""haqsearch bench kernels: integer layers on the native kernels, against the best of torch's int8 engines.

Torch's engines keep int8 weights and uint8 activations whatever the policy; without VNNI instructions they add pairs of
products in int16 and saturate on codes of full range. Ours are exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from haqsearch.cli.bench.timing import Row, Timer, compare, report, timer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from haqsearch.cli.bench.machine import Request

_STEPS = 32  # calls of a layer in one measurement


@dataclass(frozen=True)
class Case:
    """A layer: batch, input channels, image size, output channels, kernel, stride, groups (a linear layer: size 1)."""

    group: str
    name: str
    batch: int
    inputs: int
    size: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole batch."""
        size = (self.size - 1) // self.stride + 1  # padded by half the kernel, which is odd
        return self.batch * size**2 * self.outputs * self.inputs // self.groups * self.kernel**2

    @property
    def title(self) -> str:
        return f"{self.group}: {self.name}"


def _conv(group: str, net: str, batch: int, inputs: int, size: int, outputs: int, *more: int) -> Case:
    kernel = f"{more[0]}x{more[0]}" if more else "1x1"
    stride = f"/{more[1]}" if len(more) > 1 and more[1] > 1 else ""
    return Case(group, f"{net} {inputs}-{outputs}@{size} {kernel}{stride}", batch, inputs, size, outputs, *more)


CASES = (
    _conv("conv3x3", "resnet20", 50, 16, 32, 16, 3),
    _conv("conv3x3", "resnet20", 50, 32, 16, 32, 3),
    _conv("conv3x3", "resnet20", 50, 64, 8, 64, 3),
    _conv("conv3x3", "resnet18", 1, 64, 56, 64, 3),
    _conv("conv3x3", "resnet18", 1, 128, 28, 128, 3),
    _conv("conv3x3", "resnet18", 1, 256, 14, 256, 3),
    _conv("conv3x3", "resnet18", 1, 512, 7, 512, 3),
    _conv("strided", "resnet20", 50, 16, 32, 32, 3, 2),
    _conv("strided", "resnet20", 50, 32, 16, 64, 3, 2),
    _conv("strided", "resnet18", 1, 64, 56, 128, 3, 2),
    _conv("strided", "resnet18", 1, 128, 28, 256, 3, 2),
    _conv("stem", "resnet20", 50, 3, 32, 16, 3),
    _conv("stem", "resnet18", 1, 3, 224, 64, 7, 2),
    _conv("stem", "mobilenet_v2", 1, 3, 224, 32, 3, 2),
    _conv("pointwise", "mobilenet_v2", 1, 32, 112, 16),
    _conv("pointwise", "mobilenet_v2", 1, 32, 28, 192),
    _conv("pointwise", "mobilenet_v2", 1, 96, 14, 576),
    _conv("pointwise", "mobilenet_v2", 1, 576, 14, 96),
    _conv("pointwise", "mobilenet_v2", 1, 160, 7, 960),
    _conv("pointwise", "mobilenet_v2", 1, 320, 7, 1280),
    _conv("depthwise", "mobilenet_v2", 1, 32, 112, 32, 3, 1, 32),
    _conv("depthwise", "mobilenet_v2", 1, 144, 56, 144, 3, 2, 144),
    _conv("depthwise", "mobilenet_v2", 1, 192, 28, 192, 3, 1, 192),
    _conv("depthwise", "mobilenet_v2", 1, 576, 14, 576, 3, 1, 576),
    _conv("depthwise", "mobilenet_v2", 1, 960, 7, 960, 3, 1, 960),
    Case("linear", "4096-4096", 1, 4096, 1, 4096),
    Case("matrix", "1024-1024, batch 32", 32, 1024, 1, 1024),
)

POLICIES = {
    "conv3x3": ("w8a8", "w8a7", "w6a8", "w5a8", "w4a8", "w4a4", "w2a2", "w1a1"),
    "strided": ("w8a8", "w8a7", "w6a8", "w4a8", "w4a4"),
    "stem": ("w8a8", "w8a7", "w4a8", "w4a4"),
    "pointwise": ("w8a8", "w8a7", "w6a8", "w4a8", "w4a4"),
    "depthwise": ("w8a8", "w4a8", "w4a4"),
    "linear": ("w8a8", "w4a8", "w3a8", "w2a8", "w1a8"),
    "matrix": ("w8a8", "w8a7", "w4a8", "w4a4"),
}
"""Group -> the widths it is measured at. ``linear`` is of one row, ``matrix`` of many."""
_LINEAR = ("linear", "matrix")


def kernels(request: Request) -> dict[str, Any]:
    """Rows for every case and policy, and the geometric mean of each (group, policy)."""
    import torch

    machine = _peaks()
    rows = []
    before = torch.get_num_threads()
    try:
        for threads in request.threads:
            torch.set_num_threads(threads)
            for case in CASES:
                if request.only in case.title:
                    rows += _rows(case, threads, request.repeats)
    finally:
        torch.set_num_threads(before)
    means = _means(rows)
    found = report(rows, "kernels", request.folder, {"geometric_means": means, "peaks": machine})
    found["text"] += ["", "one core at most"]
    found["text"] += [f"{name:40s} {value:7.1f}" for name, value in machine.items()]
    found["text"] += ["", "geometric means"]
    found["text"] += [f"{m['group']:12s} {m['policy']:6s} {m['threads']} threads {m['ratio']:.2f}" for m in means]
    return found


def _rows(case: Case, threads: int, repeats: int) -> list[Row]:
    engine, theirs = _best_engine(case)
    rows = []
    for policy in POLICIES[case.group]:
        ours, op = _ours(case, policy)
        figures = compare(ours, lambda: timer(partial(_repeat, theirs, _STEPS))() / _STEPS, repeats)
        rates = {
            "gmac_per_s": round(case.macs / figures["ours_s"] / 1e9, 1),
            "gbyte_per_s": round(op.packed_bytes / figures["ours_s"] / 1e9, 1),
        }
        note = f"{op.method}; {engine}"
        rows.append(Row(case.title, policy, "torch_int8", threads, note=note, **figures, **rates))
    return rows


def _peaks() -> dict[str, float]:
    """What one core does at most: multiply-adds in registers by instruction, reading memory beyond the caches and within.

    The best of many short runs: a busy machine interrupts some of them.
    """
    import torch

    from haqsearch.kernels.native import peaks, read_rate

    found = {f"{name}, GMAC/s": rate for name, rate in peaks().items()}
    for label, size in (("8 MB", 2**23), ("256 MB", 2**28)):
        found[f"reading {label} again and again, GB/s"] = read_rate(torch.zeros(size // 8, dtype=torch.int64))
    return {name: round(rate, 1) for name, rate in found.items()}


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def _means(rows: list[Row]) -> list[dict[str, Any]]:
    from math import exp, log

    found: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        found.setdefault((row.case.partition(":")[0], row.policy, row.threads), []).append(log(row.ratio))
    return [
        {"group": group, "policy": policy, "threads": threads, "ratio": round(exp(sum(v) / len(v)), 3), "cases": len(v)}
        for (group, policy, threads), v in found.items()
    ]


def _random_codes(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _ours(case: Case, policy: str) -> tuple[Timer, Any]:
    """(a timer of the layer, the packed operation); inputs over the full range of their width.

    In a program layers follow one another in C++. So the layer's time is that of a network which has it _STEPS times more,
    less that of the network which has it once: without copying codes in and out, which no program does between layers.
    """
    import torch

    from haqsearch.kernels import native
    from haqsearch.kernels.schema import out_size
    from haqsearch.runtime.native import FEW_ROWS

    bits, activation_bits = (int(width) for width in policy[1:].split("a"))
    top = 2**activation_bits - 1
    low, high = (-1, 0) if bits == 1 else (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    weight = _random_codes((case.outputs, case.inputs // case.groups, case.kernel, case.kernel), low, high, torch.int8)
    padding = case.kernel // 2
    size = out_size(case.size, case.kernel, case.stride, padding)
    window = ((case.stride, case.stride), (padding, padding), (1, 1))
    spread = max(weight[0].numel() * top * high, 1).bit_length()
    multiplier = torch.randint(2**30, 2**31, (case.outputs,), generator=torch.Generator().manual_seed(1))
    shift = torch.full((case.outputs,), 31 + max(spread - 10, 0))
    few_rows = case.group in _LINEAR and case.batch <= FEW_ROWS
    op = None

    def network_of(steps: int) -> Any:
        nonlocal op
        network = native.Network()
        source = network.slot((case.inputs, case.size, case.size), torch.uint8, 0)
        target = network.slot((case.outputs, size, size), torch.uint8, 0)
        network.pad(source, native.window_border((case.size, case.size), weight.shape[2:], *window))
        if op is None:
            end = native.epilogue(target, case.outputs, multiplier, 1 << (shift - 1), shift, 0, 0, top)
            op = native.conv_op(source, 0, (0, top), weight, bits, window, case.groups, end, few_rows)
        network.take(0, source)
        for _ in range(steps):
            network.step(op, [native.whole(source)], native.whole(target))
        network.give(0, target)
        return network

    once, more = network_of(1), network_of(_STEPS + 1)
    x = _random_codes((case.batch, case.inputs, case.size, case.size), 0, top, torch.uint8)
    rest, all_of = timer(lambda: once.run([x])), timer(lambda: more.run([x]))
    return lambda: max(all_of() - rest(), 1e-9) / _STEPS, op


def _best_engine(case: Case) -> tuple[str, Callable[[], Any]]:
    """The fastest of torch's int8 engines on ``case``."""
    import torch

    found = {}
    for engine in torch.backends.quantized.supported_engines:
        if engine in {"onednn", "x86", "fbgemm"}:
            call = _engine(engine, case)
            call()
            found[engine] = (min(timer(partial(_repeat, call, 5))() for _ in range(5)), call)
    best = min(found, key=lambda name: found[name][0])
    return best, found[best][1]


def _engine(engine: str, case: Case) -> Callable[[], Any]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao's quantized modules announce their successors
        import torch.ao.nn.quantized as quantized

        torch.backends.quantized.engine = engine
        shape: tuple[int, ...] = (case.outputs, case.inputs // case.groups, case.kernel, case.kernel)
        scales = torch.full((case.outputs,), 0.01), torch.zeros(case.outputs, dtype=torch.long)
        if case.group in _LINEAR:
            layer: Any = quantized.Linear(case.inputs, case.outputs)
            shape = shape[:2]
        else:
            padding = case.kernel // 2
            layer = quantized.Conv2d(case.inputs, case.outputs, case.kernel, case.stride, padding, groups=case.groups)
        weight = torch.quantize_per_channel(torch.randn(shape), *scales, 0, torch.qint8)
        layer.set_weight_bias(weight, torch.zeros(case.outputs))
        layer.scale, layer.zero_point = 1.0, 0
        size: tuple[int, ...] = (case.batch, case.inputs)
        if case.group not in _LINEAR:
            size = (*size, case.size, case.size)
        real = torch.rand(size)
        if len(size) == 4:
            real = real.contiguous(memory_format=torch.channels_last)
        x = torch.quantize_per_tensor(real, 1 / 255, 0, torch.quint8)

    def call() -> Any:
        with torch.no_grad():
            return layer(x)

    return call
