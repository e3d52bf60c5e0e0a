"""The native backend: C++ with SIMD, chosen by what the CPU has; equal to the reference, to the last bit.

op.h         what a tensor, an epilogue and an operation are
kernels.h    one table an instruction set; to add one: a file with its table, and a line in dispatch.cpp
portable     plain C++;  avx2, avx512 (VNNI), amx (int8 tiles), neon: SIMD
executor     a whole network in C++: planned memory, threads
network.py   what the executor is told, from Python
descent      no operator of a network: rounding its weights (haqsearch/ptq/lattice.py)
histogram    nor this: counting its values (haqsearch/calibrate/histogram.py)

The functions below are the operators of ``haqsearch.kernels.schema``, one at a time, on tensors in torch's layout; they
convert at each end. ``haqsearch.runtime`` runs whole programs without converting in between.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import haqsearch.kernels.native._native as _native
from haqsearch.errors import ModelError
from haqsearch.kernels.native.network import Border, Box, Network, Slot, whole

INT32_MAX = 2**31 - 1


def isa() -> str:
    """The instruction set to stay within: ``HAQSEARCH_ISA`` (portable, avx2, avx512, amx, neon), or "" for the best there is."""
    name = os.environ.get("HAQSEARCH_ISA", "")
    if name and name not in isas():
        raise ModelError(f"HAQSEARCH_ISA={name!r}: this machine has {', '.join(isas())}")
    return name


def isas() -> list[str]:
    """The instruction sets this CPU has kernels for, the best first."""
    return list(_native.isas())


def peaks(runs: int = 200) -> dict[str, float]:
    """Most multiply-adds a second (1e9) that one core does in registers, by the instructions it does them with."""
    best: dict[str, float] = {}
    for _ in range(runs):
        for name, products, seconds in _native.peaks(30_000):
            if not isa() or name.startswith(isa()):
                best[name] = max(best.get(name, 0.0), products / seconds / 1e9)
    return best


def read_rate(x: Tensor, runs: int = 20) -> float:
    """Most bytes a second (1e9) at which one core reads ``x`` from end to end, time and again."""
    size = x.numel() * x.element_size()
    return max(size / _native.read_memory(x.data_ptr(), size)[0] / 1e9 for _ in range(runs))


def descend(
    codes: Tensor, error: Tensor, slope: Tensor, rows: Tensor, scale: Tensor, covariance: Tensor, bounds: tuple[int, int],
    levels: Tensor | None, step: Tensor | None, sweeps: int,
) -> None:  # fmt: skip
    """``haqsearch.ptq.lattice`` on the codes (G, N, K) in place, with the error and slope that go with them; all float64.

    ``levels`` and ``step`` as of a ``Grid``; without levels the integers within ``bounds``. On torch's number of threads.
    """
    rows, scale, covariance = rows.contiguous(), scale.contiguous(), covariance.contiguous()
    grid = _grid(bounds, levels, step)
    _native.descend(codes, error, slope, rows, scale, covariance, *grid, sweeps, torch.get_num_threads())


def decide(
    rows: Tensor, scale: Tensor, share: Tensor, bounds: tuple[int, int], levels: Tensor | None, step: Tensor | None
) -> Tensor:
    """Codes (G, N, K) for ``nearest_plane`` of ``haqsearch.ptq.lattice``, the inputs of ``rows`` in the order of decision.

    ``share`` (G, K, K): in row k of the changes of inputs before k what weight k is made less by. The others as of ``descend``.
    """
    rows, scale, share = rows.contiguous(), scale.contiguous(), share.contiguous()
    codes = torch.empty_like(rows)
    _native.decide(codes, rows, scale, share, *_grid(bounds, levels, step), torch.get_num_threads())
    return codes


def _grid(
    bounds: tuple[int, int], levels: Tensor | None, step: Tensor | None
) -> tuple[float, float, Tensor, Tensor, Tensor]:
    """Lowest and highest level, all levels, what lies between them, and steps; empty tensors for none."""
    none = torch.empty(0, dtype=torch.float64)
    between = none if levels is None else (levels[:-1] + levels[1:]) / 2
    levels, step = (none if t is None else t.contiguous() for t in (levels, step))
    return float(bounds[0]), float(bounds[1]), levels, between, step


def histogram(values: Tensor, low: float, step: float, counts: Tensor) -> None:
    """Add the float32 ``values`` to ``counts`` (int64) of bins ``step`` wide from ``low`` on. On torch's number of threads."""
    _native.histogram(values.contiguous().flatten(), low, step, counts, torch.get_num_threads())


def epilogue(
    slot: Slot, channels: int, multiplier: Tensor, offset: Tensor, shift: Tensor, zero_point: int, low: int, high: int
) -> Any:
    """The constants of an epilogue that writes ``slot``, of ``channels`` channels."""
    m0, c, n = (t.contiguous() for t in (multiplier, offset, shift))
    wide, bias = slot.bytes == 2, slot.bias
    try:
        return _native.epilogue(m0, c, n, zero_point + bias, low + bias, high + bias, wide, channels)
    except ValueError as error:
        raise ModelError(str(error)) from error


def conv_op(
    x: Slot,
    x_zero_point: int,
    codes: tuple[int, int],
    weight: Tensor,
    weight_bits: int,
    window: Sequence[Sequence[int]],
    groups: int,
    constants: Any,
    few_rows: bool = False,
) -> Any:
    """Packed convolution of ``x``, whose codes lie within ``codes``. ``window``: stride, padding, dilation.

    Raises ModelError where an accumulator could leave int32 (the kernels fold the zero point into the offset).
    """
    stride, padding, dilation = window
    if weight.dtype != torch.int8 or not 1 <= weight_bits <= 8:
        raise ModelError(f"weights are int8 codes of a width of 1 to 8 bits, not {weight.dtype} of {weight_bits}")
    half = 2 ** (weight_bits - 1)
    if weight.numel() and not (-half <= int(weight.min()) and int(weight.max()) <= max(half - 1, 1)):
        raise ModelError(f"weights of {weight_bits} bits lie in {-half}..{max(half - 1, 1)}, and these do not")
    inputs = x.height_width_channels[2]
    if weight.shape[1] * groups != inputs:
        raise ModelError(f"weights for {weight.shape[1] * groups} input channels, but the input has {inputs}")
    zero_point = x_zero_point + x.bias
    low, high = min(codes[0] + x.bias, zero_point), max(codes[1] + x.bias, zero_point)
    try:
        return _native.conv(
            weight.contiguous(),
            weight_bits,
            [*stride, *padding, *dilation, *x.height_width_channels[:2]],
            groups,
            [low, high, zero_point],
            constants,
            few_rows,
            isa(),
        )
    except ValueError as error:
        raise ModelError(str(error)) from error


def weighted_sum_op(zero_points: Sequence[int], multipliers: Sequence[int], constants: Any) -> Any:
    """Residual add, or with one input a rescaling; ``zero_points`` with the slots' bias."""
    return _native.weighted_sum(list(zero_points), list(multipliers), constants, isa())


def pool_op(window: Sequence[int], zero_point: int, constants: Any) -> Any:
    """Pooling over ``window`` (kernel, stride, padding, dilation); the average, or without constants the maximum."""
    return _native.pool(list(window), zero_point, constants, isa())


def copy_op() -> Any:
    """Copies a box to a box of the same shape."""
    return _native.copy()


def flatten_op() -> Any:
    """Copies an image to features in (C, H, W) order."""
    return _native.flatten()


def window_border(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Border:
    """Border that a window over an image of ``size`` (H, W) reads."""
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ModelError("kernels, strides and dilations are at least 1, paddings at least 0")
    behind = []
    for i in (0, 1):
        if size[i] + 2 * padding[i] < dilation[i] * (kernel[i] - 1) + 1:
            raise ModelError(
                f"a window of {kernel[i]} (dilation {dilation[i]}) is larger than its padded image, {size[i]}"
            )
        reach = dilation[i] * (kernel[i] - 1)
        last = (size[i] + 2 * padding[i] - reach - 1) // stride[i] * stride[i] + reach
        behind.append(max(0, last - padding[i] - (size[i] - 1)))
    return padding[0], padding[1], behind[0], behind[1]


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> tuple[list[int], Border]:
    """How many windows ``x`` (B, C, H, W) has down and across, and the border they read."""
    from haqsearch.kernels.schema import out_size

    if x.dim() != 4:
        raise ModelError(f"windows slide over images of shape (B, C, H, W), not {tuple(x.shape)}")
    border = window_border(x.shape[2:], kernel, stride, padding, dilation)
    return [out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)], border


def conv2d(x: Tensor, x_zero_point: int, weight: Tensor, weight_bits: int, stride: Sequence[int],
           padding: Sequence[int], dilation: Sequence[int], groups: int, bound: int, *constants: Any) -> Tensor:  # fmt: skip
    """``haqsearch::conv2d``."""
    size, border = _windows(x, weight.shape[2:], stride, padding, dilation)
    network = Network()
    source = network.slot(x.shape[1:], x.dtype, x_zero_point)
    target = network.slot((weight.shape[0], *size), constants[-1], 0)
    network.pad(source, border)
    op = conv_op(
        source,
        x_zero_point,
        _range(x),
        weight,
        weight_bits,
        (stride, padding, dilation),
        groups,
        epilogue(target, weight.shape[0], *constants[:-1]),
    )
    return _single(network, [x], [source], op, target)


def linear(x: Tensor, x_zero_point: int, weight: Tensor, weight_bits: int, bound: int, *constants: Any) -> Tensor:
    """``haqsearch::linear``."""
    network = Network()
    source = network.slot(x.shape[1:], x.dtype, x_zero_point)
    target = network.slot((*x.shape[1:-1], weight.shape[0]), constants[-1], 0)
    made = epilogue(target, weight.shape[0], *constants[:-1])
    unit = ((1, 1), (0, 0), (1, 1))
    rows = x.numel() // max(x.shape[-1], 1)
    op = conv_op(source, x_zero_point, _range(x), weight[:, :, None, None], weight_bits, unit, 1, made, rows <= 8)
    return _single(network, [x], [source], op, target)


def weighted_sum(
    inputs: Sequence[Tensor], zero_points: Sequence[int], multipliers: Sequence[int], *constants: Any
) -> Tensor:
    """``haqsearch::weighted_sum``."""
    if len({x.shape for x in inputs}) != 1 or not len(inputs) == len(zero_points) == len(multipliers):
        raise ModelError("a weighted sum takes inputs of one shape, with a zero point and a multiplier each")
    network = Network()
    sources = [network.slot(x.shape[1:], x.dtype, z) for x, z in zip(inputs, zero_points, strict=True)]
    target = network.slot(inputs[0].shape[1:], constants[-1], 0)
    biased = [z + s.bias for z, s in zip(zero_points, sources, strict=True)]
    made = epilogue(target, 1, *constants[:-1])
    return _single(network, inputs, sources, weighted_sum_op(biased, multipliers, made), target)


def average_pool2d(x: Tensor, x_zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                   *constants: Any) -> Tensor:  # fmt: skip
    """``haqsearch::average_pool2d``."""
    size, _ = _windows(x, kernel, stride, padding)
    network = Network()
    source = network.slot(x.shape[1:], x.dtype, x_zero_point)
    target = network.slot((x.shape[1], *size), constants[-1], 0)
    made = epilogue(target, 1, *constants[:-1])
    op = pool_op([*kernel, *stride, *padding, 1, 1], x_zero_point + source.bias, made)
    return _single(network, [x], [source], op, target)


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``haqsearch::max_pool2d``."""
    size, _ = _windows(x, kernel, stride, padding, dilation)
    network = Network()
    source = network.slot(x.shape[1:], x.dtype, 0)
    target = network.slot((x.shape[1], *size), x.dtype, 0)
    op = pool_op([*kernel, *stride, *padding, *dilation], source.bias, None)
    return _single(network, [x], [source], op, target)


def _range(x: Tensor) -> tuple[int, int]:
    return (int(x.min()), int(x.max())) if x.numel() else (0, 0)


def _single(network: Network, inputs: Sequence[Tensor], sources: Sequence[Slot], op: Any, target: Slot) -> Tensor:
    for i, source in enumerate(sources):
        network.take(i, source)
    network.step(op, [whole(source) for source in sources], whole(target))
    network.give(0, target)
    return network.run(inputs)[0]


__all__ = [
    "Border",
    "Box",
    "Network",
    "Slot",
    "average_pool2d",
    "conv2d",
    "conv_op",
    "copy_op",
    "decide",
    "descend",
    "epilogue",
    "flatten_op",
    "histogram",
    "isa",
    "isas",
    "linear",
    "max_pool2d",
    "peaks",
    "pool_op",
    "read_rate",
    "weighted_sum",
    "weighted_sum_op",
    "whole",
    "window_border",
]
