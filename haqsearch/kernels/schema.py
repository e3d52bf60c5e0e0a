"""One schema for every backend: the integer operations as ``torch.library`` operators, from codes to codes.

  haqsearch::conv2d          x (B, C, H, W)            -> (B, N, OH, OW)
  haqsearch::linear          x (B, ..., K)             -> (B, ..., N)
  haqsearch::weighted_sum    inputs, all of one shape  -> that shape    (residual add; with one input a rescaling)
  haqsearch::average_pool2d  x (B, C, H, W)            -> (B, C, OH, OW)
  haqsearch::max_pool2d      x (B, C, H, W)            -> (B, C, OH, OW)

Codes are uint8 or int8 (one bit to eight), an output may be int16 or int32 where its format has more bits. All but
``max_pool2d`` end in the epilogue

    clamp(((acc * multiplier + offset) >> shift) + zero_point, low, high)

with int64 tensors ``multiplier`` (below 2**31), ``offset`` (bias * multiplier + 2**(shift - 1)) and ``shift`` (1..62) of
shape (1,) or (N,). ``dtype`` is the output's. ``bound`` is the largest magnitude a partial sum can take and
``weight_bits`` the width of the weights' format; backends choose their method by them.

A backend is a module with functions of these names and signatures. On a CPU the operators run the best backend this
installation has (see ``haqsearch.kernels.get_backend``), on a CUDA device the Triton kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from haqsearch.kernels import best_backend, get_backend

_EPILOGUE = "Tensor multiplier, Tensor offset, Tensor shift, int zero_point, int low, int high, ScalarType dtype"
SCHEMAS = {
    "conv2d": "(Tensor x, int x_zero_point, Tensor weight, int weight_bits, int[2] stride, int[2] padding, "
    f"int[2] dilation, int groups, int bound, {_EPILOGUE}) -> Tensor",
    "linear": f"(Tensor x, int x_zero_point, Tensor weight, int weight_bits, int bound, {_EPILOGUE}) -> Tensor",
    "weighted_sum": f"(Tensor[] inputs, int[] zero_points, int[] multipliers, {_EPILOGUE}) -> Tensor",
    "average_pool2d": f"(Tensor x, int x_zero_point, int[2] kernel, int[2] stride, int[2] padding, {_EPILOGUE}) -> Tensor",
    "max_pool2d": "(Tensor x, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation) -> Tensor",
}
"""Operator -> its schema, as ``torch.library`` wants it."""

_LIBRARY = torch.library.Library("haqsearch", "DEF")


def _define(name: str) -> None:
    def best(device: str) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:  # the backend is chosen at the first call: to define an operator loads none
            return getattr(get_backend(best_backend(device)), name)(*args)

        return run

    _LIBRARY.define(f"{name}{SCHEMAS[name]}")
    _LIBRARY.impl(name, best("cpu"), "CPU")
    _LIBRARY.impl(name, best("cuda"), "CUDA")
    _LIBRARY.impl(name, _SHAPES[name], "Meta")


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Length of a spatial dimension behind a window."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _window(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    return [out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]


def _conv2d(x, x_zero_point, weight, weight_bits, stride, padding, dilation, groups, bound, *epilogue):  # type: ignore[no-untyped-def]
    size = _window(x, weight.shape[2:], stride, padding, dilation)
    return x.new_empty((x.shape[0], weight.shape[0], *size), dtype=epilogue[-1])


def _linear(x, x_zero_point, weight, weight_bits, bound, *epilogue):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=epilogue[-1])


def _weighted_sum(inputs, zero_points, multipliers, *epilogue):  # type: ignore[no-untyped-def]
    return inputs[0].new_empty(inputs[0].shape, dtype=epilogue[-1])


def _average_pool2d(x, x_zero_point, kernel, stride, padding, *epilogue):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:2], *_window(x, kernel, stride, padding, (1, 1))), dtype=epilogue[-1])


def _max_pool2d(x, kernel, stride, padding, dilation):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:2], *_window(x, kernel, stride, padding, dilation)))


_SHAPES = {
    "conv2d": _conv2d,
    "linear": _linear,
    "weighted_sum": _weighted_sum,
    "average_pool2d": _average_pool2d,
    "max_pool2d": _max_pool2d,
}

for _name in SCHEMAS:
    _define(_name)
