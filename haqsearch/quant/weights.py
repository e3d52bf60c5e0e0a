"""Weights in integers: symmetric, nearest rounding, the scale - of each output channel, or of all - of least squared error.

Formats with a codebook compute with integers too. ``kmeansB`` has the centroids of k-means [Han et al. 2016, 1510.00149; HAQ,
Wang et al. 2019, 1811.08886, section 4.2]: the largest is code 127 of the layer's one scale, the others are rounded to its codes,
at most 2**B different ones. ``binary`` has the codes -1 and 1 at the mean magnitude of the channel (BWN), and 0 in a channel of
zeros; ``ternary`` has -1, 0 and 1 (TWN): see ``families/signs.py``. Where blocks of a channel share a scale, it is an integer
step times the channel's: see ``steps.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.quant.affine import symmetric_params
from haqsearch.quant.families import FAMILIES
from haqsearch.quant.grid import Grid, least_error_scale
from haqsearch.quant.steps import grid_of, quantize_steps
from haqsearch.spec import Format
from haqsearch.spec.formats import WEIGHTS


@dataclass(frozen=True)
class QWeight:
    """Integer weights: ``codes`` int8 (out, ...), ``scale`` float32 (out,); real = scale[o] * codes[o].

    In a format ``:tensor``, and in ``kmeansB``, all scales are equal.

    ``bias_correction`` (out,) is added to the layer's bias: what rounding takes from the mean of its output. None: nothing.
    ``step`` uint8, shape of ``codes``: the step of each weight's block in a format that has them, a divisor of its code.
    """

    format: Format
    codes: Tensor
    scale: Tensor
    bias_correction: Tensor | None = None
    step: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Real weights (float32), shape of ``codes``."""
        return self.codes.float() * _column(self.scale, self.codes)

    @property
    def levels(self) -> Tensor | None:
        """The codebook, ascending float64, of a format that has one."""
        return torch.unique(self.codes).double() if self.format.kind in {"kmeans", "binary"} else None

    @property
    def grid(self) -> Grid:
        """The codes that these weights may take."""
        if self.format.has_steps:
            return grid_of(self.format, None if self.step is None else self.step.double())
        return Grid(self.format.code_min, self.format.code_max, self.levels)

    def encode(self, weight: Tensor) -> QWeight:
        """Other weights (out, ...) at this one's scales and steps and with its codebook; no bias correction."""
        codes = self.grid.snap(weight.detach().double() / _column(self.scale.double(), weight))
        return replace(self, codes=codes.to(torch.int8), bias_correction=None)


def quantize_weight(weight: Tensor, format: Format, where: str = "weight") -> QWeight:
    """Quantize ``weight`` (out, ...) to ``format``, one that weights can have, with the scales of least squared error.

    Nearest rounding, half to even. A channel of zeros gets scale 1 and codes 0. Formats other than intN: see above.
    Raises DataError on NaN, infinity or no weights.
    """
    if not weight.numel():
        raise DataError(f"{where}: there are no weights (shape {tuple(weight.shape)})")
    if not bool(torch.isfinite(weight).all()):
        raise DataError(f"{where}: the weights hold NaN or infinity; check the weights file")
    if "weights" not in format.uses or format.is_float:
        raise DataError(f"{where}: weights cannot be {format}; they are {WEIGHTS}")
    if format.has_steps:
        codes, step, scale = quantize_steps(weight.detach().double().reshape(len(weight), -1), format)
        return QWeight(
            format, codes.to(torch.int8).reshape(weight.shape), scale, step=step.to(torch.uint8).reshape(weight.shape)
        )
    if format.is_decoded:
        return _kmeans(weight, format) if format.kind == "kmeans" else _signs(weight, format)
    by_tensor = format.granularity == "tensor"
    rows = weight.detach().flatten(0 if by_tensor else 1).double().reshape(1 if by_tensor else len(weight), -1)
    best_scale = least_error_scale(rows, Grid(format.code_min, format.code_max))
    return encode_weight(weight, best_scale.expand(len(weight)).contiguous(), format)


def _kmeans(weight: Tensor, format: Format) -> QWeight:
    rows = weight.detach().double().reshape(1, -1)
    book = FAMILIES[format.kind].encode(rows, format)["codebook"].double()
    scale = symmetric_params(book.abs().max(), format)
    levels = torch.unique(torch.round(book / scale.double()))
    codes = Grid(int(levels[0]), int(levels[-1]), levels).snap(weight.detach().double() / scale.double())
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
