"""The codes that the weights of a layer may take, rounding to them, and the scale that suits them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from haqsearch.quant.affine import positive_scale

# Fractions of the largest magnitude that are tried as the end of the range, widest first. Two bits of a bell-shaped channel want
# a range as short as a sixth of its largest value; eight bits want nearly all of it.
_FRACTIONS = torch.linspace(0.15, 1.0, 86, dtype=torch.float64).flip(0)


@dataclass(frozen=True)
class Grid:
    """Codes level * step, level one of ``levels``, ascending float64, or any integer from ``low`` to ``high`` if it is None.

    ``step`` (float, a value for each weight) is None where it is 1 everywhere.
    """

    low: int
    high: int
    levels: Tensor | None = None
    step: Tensor | None = None

    def __getitem__(self, index: Any) -> Grid:
        """The grid of the weights at ``index``."""
        return self if self.step is None else replace(self, step=self.step[index])

    def reshaped(self, *shape: int) -> Grid:
        """The grid of the weights in another shape."""
        return self if self.step is None else replace(self, step=self.step.reshape(shape))

    def repeated(self, *times: int) -> Grid:
        """The grid of the weights repeated along each dimension, as ``Tensor.repeat`` does."""
        return self if self.step is None else replace(self, step=self.step.repeat(*times))

    def snap(self, x: Tensor) -> Tensor:
        """``x``, weights in steps of their scale, rounded to the nearest codes; halfway between integers to the even one."""
        if self.step is None:
            return self._nearest(x)
        step = self.step.to(x.dtype)
        return self._nearest(x / step) * step

    def through(self, x: Tensor) -> Tensor:
        """``snap`` for training: rounding passes gradients unchanged, clamping passes them inside the range only."""
        step = None if self.step is None else self.step.to(x.dtype)
        unit = x if step is None else x / step
        if self.levels is None:
            level = (unit + (torch.round(unit) - unit).detach()).clamp(self.low, self.high)
        else:
            inside = unit.clamp(float(self.levels[0]), float(self.levels[-1]))
            level = inside + (self._nearest(inside) - inside).detach()
        return level if step is None else level * step

    def cells(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (float32) within which a weight is rounded to the one of ``codes`` that it has, with a little to spare."""
        step = torch.ones(()) if self.step is None else self.step.float()
        level = codes.float() / step
        if self.levels is None:
            return (level - 0.49) * step, (level + 0.49) * step
        levels = self.levels.float()
        gaps = 0.49 * levels.diff()
        below, above = torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])
        if len(levels) == 1:
            below = above = torch.full_like(levels, 0.49)
        index = torch.bucketize(level, levels)
        return (level - below[index]) * step, (level + above[index]) * step

    def _nearest(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return torch.round(x).clamp_(self.low, self.high)
        levels = self.levels.to(x.dtype)
        return levels[torch.bucketize(x, (levels[:-1] + levels[1:]) / 2)]


def least_error_scale(rows: Tensor, grid: Grid) -> Tensor:
    """Scales (float32, (rows,)) of ``rows`` (rows, length), float64, of least squared error; 1 where all is zero."""
    limit = rows.abs().amax(1)
    best, least = positive_scale(limit / grid.high), torch.full_like(limit, torch.inf)
    for fraction in _FRACTIONS:  # of equal errors the range that clips nothing wins
        scale = positive_scale(limit * fraction / grid.high)
        error = squared_error(rows, grid.snap(rows / scale.double()[:, None]), scale)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return best


def squared_error(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Of each row, float64."""
    return (codes * scale.double()[:, None] - rows).square_().sum(1)
