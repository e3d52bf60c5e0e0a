"""Affine quantization: real = scale * (q - zero_point) [Jacob et al. 2018, 1712.05877, eq. 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.spec import Format


@dataclass(frozen=True)
class QParams:
    """Per-tensor quantization of one activation: ``scale`` > 0 (exactly a float32), ``zero_point`` a code of ``format``."""

    format: Format
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        # Exports store scales as float32; rounding here means that what is searched is what is exported.
        object.__setattr__(self, "scale", float(np.float32(self.scale)))


def affine_params(low: float, high: float, format: Format) -> QParams:
    """Parameters that cover [low, high], widened to contain 0, so that real zero is exactly a code.

    ``uintN`` gets a zero point (0 when low is 0, as after ReLU); ``intN`` is symmetric, zero point 0.
    A range of a single point, [0, 0], gets scale 1. Raises DataError if a bound is not finite, the range is reversed, or its
    scale is beyond float32.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"cannot quantize the range [{low}, {high}]: it is not finite")
    if low > high:
        raise DataError(f"cannot quantize the range [{low}, {high}]: it is reversed")
    low, high = min(low, 0.0), max(high, 0.0)
    if _span(low, high, format.kind) / format.code_max > torch.finfo(torch.float32).max:
        raise DataError(f"cannot quantize the range [{low}, {high}]: its scale is beyond float32")
    return QParams(format, *affine_numbers(low, high, format.kind, (format.code_min, format.code_max)))


def affine_numbers(low: float, high: float, kind: str, codes: tuple[int, int]) -> tuple[float, int]:
    """Scale, not yet rounded to float32, and zero point of [low, high]: ``affine_params`` without its checks, for loops.

    ``low`` <= 0 <= ``high``, finite; ``kind`` of the format; ``codes``: its least and its largest.
    """
    scale = _positive(_span(low, high, kind) / codes[1])
    if kind == "int":
        return scale, 0
    return scale, min(max(round(codes[0] - low / scale), codes[0]), codes[1])


def _span(low: float, high: float, kind: str) -> float:
    """What the codes up to the largest have to cover."""
    return max(-low, high) if kind == "int" else high - low


def symmetric_params(limit: Tensor, format: Format) -> Tensor:
    """Scales (float32) of symmetric codes that reach ``limit`` (any shape, >= 0); a limit of 0 gets scale 1."""
    return positive_scale(limit.double() / format.code_max)


def positive_scale(scale: Tensor) -> Tensor:
    """``scale`` as float32, and 1 where that is none: zero, subnormal."""
    scale = scale.float()
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(scale >= smallest, scale, torch.ones_like(scale))


def _positive(scale: float) -> float:
    return scale if np.float32(scale) >= np.finfo(np.float32).tiny else 1.0


def storage_dtype(format: Format) -> torch.dtype:
    """Smallest torch integer type that holds every code of ``format``; float32 for a float format."""
    if format.is_float:
        return torch.float32
    if format.kind == "uint":
        return torch.uint8 if format.width <= 8 else torch.int32
    return torch.int8 if format.width <= 8 else torch.int16


def quantize(x: Tensor, params: QParams) -> Tensor:
    """Codes of ``x`` (any shape), rounded half to even and clamped: clamp(round(x / scale) + zero_point).

    The division is float32's, as in ONNX's QuantizeLinear, so that inputs get the same codes here and there.
    """
    codes = torch.round(x.float() / torch.tensor(params.scale)).add_(params.zero_point)
    return codes.clamp_(params.format.code_min, params.format.code_max).to(storage_dtype(params.format))


def round_stochastic(x: Tensor, generator: torch.Generator) -> Tensor:
    """``x`` (any shape) rounded down or up at random, up with the probability of its fraction: right on average, E = x.

    [Gupta et al. 2015, 1502.02551, section 3.1]. Integers stay. The generator decides; the same seed gives the same.
    """
    return torch.floor(x + torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.dtype))


def dequantize(codes: Tensor, params: QParams) -> Tensor:
    """Real values (float32) of ``codes``."""
    return (codes.to(torch.float32) - params.zero_point) * params.scale
