"""Weights in integers: symmetric, nearest rounding, the scale - of each output channel, or of all - of least squared error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.quant.affine import symmetric_params
from haqsearch.spec import Format

# Fractions of the largest magnitude that are tried as the end of the range. Two bits of a bell-shaped channel want a
# range as short as a sixth of its largest value; eight bits want nearly all of it.
_FRACTIONS = torch.linspace(0.15, 1.0, 86, dtype=torch.float64)


@dataclass(frozen=True)
class QWeight:
    """Integer weights: ``codes`` int8 (out, ...), ``scale`` float32 (out,); real = scale[o] * codes[o].

    In a format ``:tensor`` all scales are equal.

    ``bias_correction`` (out,) is added to the layer's bias: what rounding takes from the mean of its output. None: nothing.
    """

    format: Format
    codes: Tensor
    scale: Tensor
    bias_correction: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Real weights (float32), shape of ``codes``."""
        return self.codes.float() * _column(self.scale, self.codes)


def quantize_weight(weight: Tensor, format: Format, where: str = "weight") -> QWeight:
    """Quantize ``weight`` (out, ...) to ``format`` (intN or intN:tensor, N <= 8) with the scales of least squared error.

    Nearest rounding, half to even. A channel of zeros gets scale 1 and codes 0. Raises DataError on NaN, infinity or no weights.
    """
    if not weight.numel():
        raise DataError(f"{where}: there are no weights (shape {tuple(weight.shape)})")
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"{where}: the weights hold NaN or infinity; check the weights file")
    if format.kind != "int" or not format.in_programs or format.width > 8:
        raise DataError(f"{where}: weights are stored as int2..int8, not {format}")
    by_tensor = format.granularity == "tensor"
    rows = weight.detach().flatten(0 if by_tensor else 1).double().reshape(1 if by_tensor else len(weight), -1)
    limit = rows.abs().amax(1)
    best_error = torch.full_like(limit, torch.inf)
    best_scale = symmetric_params(limit, format)
    for fraction in _FRACTIONS.flip(0):  # widest first: of equal errors the range that clips nothing wins
        scale = symmetric_params(limit * fraction, format)
        column = scale.double()[:, None]
        codes = torch.round(rows / column).clamp_(format.code_min, format.code_max)
        error = (codes.mul_(column) - rows).square_().sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return encode_weight(weight, best_scale.expand(len(weight)).contiguous(), format)


def encode_weight(
    weight: Tensor, scale: Tensor, format: Format, rounding: Callable[[Tensor], Tensor] = torch.round
) -> QWeight:
    """Codes of ``weight`` (out, ...) at the given ``scale`` (out,), rounded (nearest, half to even) and clamped."""
    codes = rounding(weight.detach().double() / _column(scale.double(), weight))
    return QWeight(format, codes.clamp_(format.code_min, format.code_max).to(torch.int8), scale)


def _column(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))
