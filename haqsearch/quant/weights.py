"""Weights in integers: symmetric, nearest rounding, the scale - of each output channel, or of all - of least squared error.

Formats with a codebook compute with integers too. ``kmeansB`` has the centroids of k-means [Han et al. 2016, 1510.00149; HAQ,
Wang et al. 2019, 1811.08886, section 4.2]: the largest is code 127 of the layer's one scale, the others are rounded to its codes,
at most 2**B different ones. ``binary`` has the codes -1 and 1 at the mean magnitude of the channel (BWN), and 0 in a channel of
zeros; ``ternary`` has -1, 0 and 1 (TWN): see ``families/signs.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.quant.affine import symmetric_params
from haqsearch.quant.families import FAMILIES
from haqsearch.spec import Format

# Fractions of the largest magnitude that are tried as the end of the range. Two bits of a bell-shaped channel want a
# range as short as a sixth of its largest value; eight bits want nearly all of it.
_FRACTIONS = torch.linspace(0.15, 1.0, 86, dtype=torch.float64)


@dataclass(frozen=True)
class QWeight:
    """Integer weights: ``codes`` int8 (out, ...), ``scale`` float32 (out,); real = scale[o] * codes[o].

    In a format ``:tensor``, and in ``kmeansB``, all scales are equal.

    ``bias_correction`` (out,) is added to the layer's bias: what rounding takes from the mean of its output. None: nothing.
    """

    format: Format
    codes: Tensor
    scale: Tensor
    bias_correction: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Real weights (float32), shape of ``codes``."""
        return self.codes.float() * _column(self.scale, self.codes)

    @property
    def levels(self) -> Tensor | None:
        """The codes there are, ascending float64, where they are not all from ``code_min`` to ``code_max``."""
        return torch.unique(self.codes).double() if self.format.kind in {"kmeans", "binary"} else None

    def snap(self, x: Tensor) -> Tensor:
        """``x`` (any shape), weights in steps of the scale, rounded to the nearest codes of this format's."""
        return snap(x, self.format, self.levels)

    def encode(self, weight: Tensor) -> QWeight:
        """Other weights (out, ...) at this one's scales and with its codebook; no bias correction."""
        codes = self.snap(weight.detach().double() / _column(self.scale.double(), weight))
        return QWeight(self.format, codes.to(torch.int8), self.scale)


def snap(x: Tensor, format: Format, levels: Tensor | None = None) -> Tensor:
    """``x`` rounded, half to even, and clamped to the codes of ``format``; or to the nearest of ``levels``, ascending."""
    if levels is None:
        return torch.round(x).clamp_(format.code_min, format.code_max)
    levels = levels.to(x.dtype)
    return levels[torch.bucketize(x, (levels[:-1] + levels[1:]) / 2)]


def quantize_weight(weight: Tensor, format: Format, where: str = "weight") -> QWeight:
    """Quantize ``weight`` (out, ...) to ``format`` (intN or intN:tensor, N <= 8) with the scales of least squared error.

    Nearest rounding, half to even. A channel of zeros gets scale 1 and codes 0. ``kmeansB``, ``binary``, ``ternary``: see above.
    Raises DataError on NaN, infinity or no weights.
    """
    if not weight.numel():
        raise DataError(f"{where}: there are no weights (shape {tuple(weight.shape)})")
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"{where}: the weights hold NaN or infinity; check the weights file")
    if format.has_codebook:
        return _kmeans(weight, format) if format.kind == "kmeans" else _signs(weight, format)
    if format.kind != "int" or not format.in_programs or format.width > 8:
        raise DataError(f"{where}: weights are stored as int2..int8, not {format}; also kmeans1..8, binary, ternary")
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


def _kmeans(weight: Tensor, format: Format) -> QWeight:
    rows = weight.detach().double().reshape(1, -1)
    book = FAMILIES[format.kind].encode(rows, format)["codebook"].double()
    scale = symmetric_params(book.abs().max(), format)
    levels = torch.unique(torch.round(book / scale.double()))
    codes = snap(weight.detach().double() / scale.double(), format, levels)
    return QWeight(format, codes.to(torch.int8), scale.expand(len(weight)).contiguous())


def _signs(weight: Tensor, format: Format) -> QWeight:
    rows = weight.detach().double().flatten(1).reshape(len(weight), -1)
    family = FAMILIES[format.kind]
    parts = family.encode(rows, format)
    scale = parts["scale"].double()
    usable = scale >= torch.finfo(torch.float32).tiny
    scale = torch.where(usable, scale, torch.ones_like(scale))
    codes = torch.round(family.decode(parts, format) / scale)
    return QWeight(format, codes.reshape(weight.shape).to(torch.int8), scale.reshape(-1).float())


def encode_weight(
    weight: Tensor, scale: Tensor, format: Format, rounding: Callable[[Tensor], Tensor] = torch.round
) -> QWeight:
    """Codes of ``weight`` (out, ...) at the given ``scale`` (out,), rounded (nearest, half to even) and clamped."""
    codes = rounding(weight.detach().double() / _column(scale.double(), weight))
    return QWeight(format, codes.clamp_(format.code_min, format.code_max).to(torch.int8), scale)


def _column(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))
