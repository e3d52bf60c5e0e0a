"""The oracle: integer layers in plain torch, exact by construction.

A convolution of integers is computed by a floating-point convolution, which is exact as long as every partial sum is an
integer that the floating type holds exactly: below 2**24 in float32, below 2**53 in float64. ``accumulator_bound`` bounds
every partial sum from the weights themselves, and ``exact_dtype`` chooses the type by it. Two things could break this and
are therefore ruled out: NNPACK, whose Winograd transform divides by constants that are not powers of two, and reduced
matmul precision (bf16, TF32).

Activations are codes, (B, C, H, W) or (B, features); accumulators are int64 tensors with int32 values. The operators of
``haqsearch.kernels.schema`` (conv2d, linear, weighted_sum, average_pool2d, max_pool2d) are accumulators and an epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

INT32_MAX = 2**31 - 1


def accumulator_bound(weight: Tensor, bias: Tensor | None, largest_input: int) -> int:
    """Largest magnitude any partial sum over one output channel can take: sum |w| * largest_input + |bias|.

    ``weight`` (out, ...) integer codes, ``bias`` (out,) integers, ``largest_input`` = max |q - zero_point|.
    """
    sums = weight.to(torch.int64).abs().flatten(1).sum(1) * largest_input
    if bias is not None:
        sums = sums + bias.to(torch.int64).abs()
    return int(sums.max())


def exact_dtype(bound: int, device: torch.device | None = None) -> torch.dtype:
    """Fastest floating type in which integer sums bounded by ``bound`` are exact."""
    reduced = torch.get_float32_matmul_precision() != "highest" or (device is not None and device.type != "cpu")
    return torch.float32 if bound < 2**24 and not reduced else torch.float64


def conv2d_sums(
    x: Tensor,
    zero_point: int,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bound: int,
) -> Tensor:
    """sum over the window of (x - zero_point) * weight, int64 (B, N, OH, OW); padding adds real zeros.

    ``x`` (B, C, H, W) and ``weight`` (N, C / groups, kh, kw) integer codes; ``bound`` from ``accumulator_bound``.
    """
    dtype = exact_dtype(bound, x.device)
    values = x.to(dtype).sub_(zero_point) if zero_point else x.to(dtype)
    with torch.backends.nnpack.flags(enabled=False):
        sums = F.conv2d(values, weight.to(dtype), None, tuple(stride), tuple(padding), tuple(dilation), groups)
    return sums.to(torch.int64)


def linear_sums(x: Tensor, zero_point: int, weight: Tensor, bound: int) -> Tensor:
    """sum of (x - zero_point) * weight, int64 (B, ..., N); ``x`` (B, ..., K) and ``weight`` (N, K) integer codes."""
    dtype = exact_dtype(bound, x.device)
    return F.linear(x.to(dtype).sub_(zero_point), weight.to(dtype)).to(torch.int64)


def window_sums(
    x: Tensor, zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """sum over each window of (x - zero_point), int64 (B, C, OH, OW); padding adds real zeros."""
    values = F.pad(x.to(torch.float64).sub_(zero_point), (padding[1], padding[1], padding[0], padding[0]))
    sums = F.avg_pool2d(values, tuple(kernel), tuple(stride), divisor_override=1)
    return torch.round(sums).to(torch.int64)


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Largest code of each window, in ``x``'s type. Exact: codes of 16 bits and fewer are float32 integers."""
    return F.max_pool2d(x.float(), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)).to(x.dtype)


def weighted_sums(inputs: Sequence[Tensor], zero_points: Sequence[int], multipliers: Sequence[int]) -> Tensor:
    """sum over the inputs of (q - zero_point) * multiplier, int64: the residual add before its one rounding."""
    total = (inputs[0].to(torch.int64) - zero_points[0]).mul_(multipliers[0])
    for x, zero_point, multiplier in zip(inputs[1:], zero_points[1:], multipliers[1:], strict=True):
        total += (x.to(torch.int64) - zero_point).mul_(multiplier)
    return total


def epilogue(
    acc: Tensor,
    offset: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    zero_point: int,
    low: int,
    high: int,
    dtype: torch.dtype,
) -> Tensor:
    """clamp(((acc * multiplier + offset) >> shift) + zero_point, low, high) as codes of ``dtype``.

    ``offset`` holds bias * multiplier + 2**(shift - 1): one multiply-add and one shift an element. The three tensors are
    int64 of shape (1,) or (N,), N the channel dimension (dim 1 of an image, the last of a vector).
    """
    if acc.ndim == 4 and multiplier.numel() > 1:
        offset, multiplier, shift = (t.view(1, -1, 1, 1) for t in (offset, multiplier, shift))
    codes = (acc * multiplier).add_(offset).bitwise_right_shift_(shift)
    return codes.add_(zero_point).clamp_(low, high).to(dtype)


def conv2d(  # the operators: their schema names the arguments
    x: Tensor,
    x_zero_point: int,
    weight: Tensor,
    weight_bits: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bound: int,
    *epilogue_: Any,
) -> Tensor:
    """``haqsearch::conv2d``."""
    return _requantized(conv2d_sums(x, x_zero_point, weight, stride, padding, dilation, groups, bound), *epilogue_)


def linear(x: Tensor, x_zero_point: int, weight: Tensor, weight_bits: int, bound: int, *epilogue_: Any) -> Tensor:
    """``haqsearch::linear``."""
    return _requantized(linear_sums(x, x_zero_point, weight, bound), *epilogue_)


def weighted_sum(
    inputs: Sequence[Tensor], zero_points: Sequence[int], multipliers: Sequence[int], *epilogue_: Any
) -> Tensor:
    """``haqsearch::weighted_sum``."""
    return _requantized(weighted_sums(inputs, zero_points, multipliers), *epilogue_)


def average_pool2d(
    x: Tensor, x_zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *epilogue_: Any
) -> Tensor:
    """``haqsearch::average_pool2d``."""
    return _requantized(window_sums(x, x_zero_point, kernel, stride, padding), *epilogue_)


def _requantized(acc: Tensor, multiplier: Tensor, offset: Tensor, shift: Tensor, *rest: Any) -> Tensor:
    return epilogue(acc, offset, multiplier, shift, *rest)
