"""CUDA kernels in Triton: the operators of ``haqsearch.kernels.schema``, equal to the reference code for code.

Tensors are images (B, C, H, W) or vectors (..., K) on a CUDA device. Images are NHWC inside: an input in any other layout
is copied, an output has ``channels_last`` strides.

Convolutions and linear layers are implicit matrix products on int8 tensor cores, weights packed to 1, 2, 4 or 8 bits (see
``packing``). Depthwise convolutions and pools are bound by memory: each thread walks its windows.

Why a product is exact. Tensor cores multiply signed bytes, so an unsigned code x enters as a = x - 128 (a signed one as it
is: read 0 for 128 below). Where the window leaves the image a is z - 128, which stands for a real zero. Then

    sum (x - z) * w  =  sum a * w  -  (z - 128) * sum w,

the last sum being known from packing and the difference taken in 64 bits. Some GPUs' instructions saturate, so no partial
sum of a * w may leave int32, and wrapping around is no way out. |a| <= 128, so none does while the |w| of an output channel
sum to less than 2**24: up to 132,000 inputs at 8 bits, more at fewer. Beyond, every product of 32 inputs is added up in 64
bits. The weights say which it is; neither ``bound`` nor ``weight_bits`` is needed.

What is known of these kernels: they equal the reference under Triton's interpreter, and they compile for compute
capabilities 8.0 and 9.0 to int8 tensor-core instructions. They have not run on a GPU; tiles are reasoned, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.kernels.triton import kernels
from haqsearch.kernels.triton.packing import PLANE, packed, taps_first


def conv2d(
    x: Tensor,
    x_zero_point: int,
    weight: Tensor,
    weight_bits: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bound: int,
    *epilogue: Any,
) -> Tensor:
    """``haqsearch::conv2d``. Raises ModelError for shapes or types that the schema does not have."""
    _check_codes(x, x_zero_point)
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ModelError(f"conv2d: weights {tuple(weight.shape)} in {groups} groups do not fit codes {tuple(x.shape)}")
    window = (*weight.shape[2:], *stride, *padding, *dilation)
    x, out, size = _images(x, weight.shape[0], window, epilogue[-1])
    if weight.shape[1] == 1 and groups > 1:
        _window_sum(x, x_zero_point, taps_first(weight), out, size, window, epilogue)
    else:
        _gemm(x, x_zero_point, weight, out, size, window, groups, epilogue)
    return out


def linear(x: Tensor, x_zero_point: int, weight: Tensor, weight_bits: int, bound: int, *epilogue: Any) -> Tensor:
    """``haqsearch::linear``: the convolution of images of one pixel. Raises ModelError as ``conv2d`` does."""
    _check_codes(x, x_zero_point)
    if x.shape[-1] != weight.shape[1]:
        raise ModelError(f"linear: weights {tuple(weight.shape)} do not fit codes {tuple(x.shape)}")
    out = x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=epilogue[-1])
    _gemm(x.contiguous(), x_zero_point, weight, out, (1, 1, 1, 1), (1, 1, 1, 1, 0, 0, 1, 1), 1, epilogue)
    return out


def weighted_sum(
    inputs: Sequence[Tensor], zero_points: Sequence[int], multipliers: Sequence[int], *epilogue: Any
) -> Tensor:
    """``haqsearch::weighted_sum``, of any number of inputs, their types as they are. Raises ModelError unless of one shape."""
    shape = inputs[0].shape
    if any(x.shape != shape for x in inputs) or not len(inputs) == len(zero_points) == len(multipliers):
        raise ModelError(
            f"weighted_sum: {[tuple(x.shape) for x in inputs]} have to be of one shape, with a zero point and a multiplier each"
        )
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    out = torch.empty(shape, dtype=epilogue[-1], device=inputs[0].device, memory_format=layout)
    channels = shape[1] if len(shape) == 4 else shape[-1]
    contiguous = tuple(x.contiguous(memory_format=layout) for x in inputs)
    args = (contiguous, tuple(zero_points), tuple(multipliers), out, epilogue[:-1], out.numel(), channels)
    grid, per_channel = (triton.cdiv(out.numel(), 1024),), _per_channel(epilogue, channels)
    _launch(kernels.weighted_sum_kernel, grid, out, args, PER_CHANNEL=per_channel, BLOCK=1024)
    return out


def average_pool2d(
    x: Tensor, x_zero_point: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], *epilogue: Any
) -> Tensor:
    """``haqsearch::average_pool2d``: the sum over each window, requantized by a multiplier that divides by its size."""
    window = (*kernel, *stride, *padding, 1, 1)
    x, out, size = _images(x, x.shape[1], window, epilogue[-1])
    _window_sum(x, x_zero_point, None, out, size, window, epilogue)
    return out


def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """``haqsearch::max_pool2d``; the border never wins."""
    window = (*kernel, *stride, *padding, *dilation)
    x, out, size = _images(x, x.shape[1], window, x.dtype)
    pixels, channels = _extent(out)
    grid, tile = _tile(pixels, channels)
    args = (x, out, size, window, pixels, channels)
    _launch(kernels.window_max_kernel, grid, out, args, LEAST=torch.iinfo(x.dtype).min, **tile)
    return out


def _gemm(
    x: Tensor,
    x_zero_point: int,
    weight: Tensor,
    out: Tensor,
    size: tuple[int, ...],
    window: tuple[int, ...],
    groups: int,
    epilogue: tuple[Any, ...],
) -> None:
    codes = packed(weight)
    pixels, outputs = out.numel() // len(weight), len(weight) // groups
    grid, tile = _tile(pixels, outputs)
    tensors = (x, codes.data, codes.sums, out)
    numbers = (pixels, weight.shape[1], outputs, codes.data.shape[1], x_zero_point, codes.first, codes.step)
    constants = {"BITS": codes.bits, "WIDE": codes.wide, "PLANE": PLANE, "CENTRE": 128 * (x.dtype == torch.uint8)}
    constants["PER_CHANNEL"] = _per_channel(epilogue, len(weight))
    args = (*tensors, size, window, epilogue[:-1], *numbers)
    _launch(kernels.gemm_kernel, (*grid, groups), out, args, **constants, **tile)


def _window_sum(
    x: Tensor,
    x_zero_point: int,
    weight: Tensor | None,
    out: Tensor,
    size: tuple[int, ...],
    window: tuple[int, ...],
    epilogue: tuple[Any, ...],
) -> None:
    pixels, channels = _extent(out)
    grid, tile = _tile(pixels, channels)
    numbers = (pixels, x.shape[1], channels // x.shape[1], x_zero_point)
    args = (x, x if weight is None else weight, out, size, window, epilogue[:-1], *numbers)
    constants = {"PER_CHANNEL": _per_channel(epilogue, channels), "WEIGHTED": weight is not None}
    _launch(kernels.window_sum_kernel, grid, out, args, **constants, **tile)


def _images(
    x: Tensor, channels: int, window: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """``x`` in NHWC memory, an empty output of ``channels`` likewise, and (in_height, in_width, out_height, out_width)."""
    kernel, stride, padding, dilation = window[:2], window[2:4], window[4:6], window[6:]
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    if min(size) < 1:
        raise ModelError(f"a window of {kernel}, dilated by {dilation}, is larger than the padded {tuple(x.shape)}")
    layout = torch.channels_last
    out = torch.empty((len(x), channels, *size), dtype=dtype, device=x.device, memory_format=layout)
    return x.contiguous(memory_format=layout), out, (*x.shape[2:], *size)


def _extent(out: Tensor) -> tuple[int, int]:
    """Pixels and channels of an image."""
    return out.numel() // out.shape[1], out.shape[1]


def _tile(pixels: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Programs, and the pixels and channels of each: powers of two from 16, the least a tensor core takes, to 64."""
    m, n = (min(max(triton.next_power_of_2(count), 16), 64) for count in (pixels, channels))
    return (triton.cdiv(pixels, m), triton.cdiv(channels, n)), {"BLOCK_M": m, "BLOCK_N": n}


def _per_channel(epilogue: tuple[Any, ...], channels: int) -> int:
    """1 if every channel has its own multiplier, offset and shift, 0 if all share one."""
    constants: tuple[Tensor, ...] = epilogue[:3]
    shape = constants[0].shape
    if shape not in {(1,), (channels,)} or any(c.dtype != torch.int64 or c.shape != shape for c in constants):
        raise ModelError(
            f"an epilogue's multiplier, offset and shift are int64 of shape (1,) or ({channels},), "
            f"not {', '.join(f'{c.dtype} of {tuple(c.shape)}' for c in constants)}"
        )
    return int(shape[0] > 1)


def _check_codes(x: Tensor, zero_point: int) -> None:
    if x.dtype not in {torch.uint8, torch.int8}:
        raise ModelError(f"a layer reads uint8 or int8 codes, not {x.dtype}")
    if not torch.iinfo(x.dtype).min <= zero_point <= torch.iinfo(x.dtype).max:
        raise ModelError(f"the zero point {zero_point} is no code of {x.dtype}")


def _launch(kernel: Any, grid: tuple[int, ...], out: Tensor, args: tuple[Any, ...], **constants: Any) -> None:
    if out.numel() == 0:  # a batch of nothing: there is no grid without programs
        return
    if not out.is_cuda and not triton.knobs.runtime.interpret:
        raise ModelError(
            f"the triton kernels run on CUDA tensors, these are on {out.device}: use another backend there"
        )
    with torch.cuda.device_of(out):
        kernel[grid](*args, **constants)
