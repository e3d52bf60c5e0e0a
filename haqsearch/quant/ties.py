"""Scales chosen so that no requantization ever meets a tie.

An integer backend rounds acc * M with a fixed-point multiplier, a float backend rounds real / scale; where acc * M falls
within a float's error of halfway between two codes the two may round differently, and one different code changes the codes
of every later layer. So ratios of scales are chosen as P / q with q odd and small: acc * P / q - (k + 1/2) is an odd number
over 2 q, never zero, and at least 1 / (2 q) in magnitude. With q of a few thousand that is 1e-4 of a code, several times
what float32 arithmetic errs by. Then all backends give the same codes, whatever their rounding rule.

The price is a change of a scale by a fraction of a thousandth of itself: of no consequence, as scales are anyhow found by
search.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 32  # numerators, or odd denominators, tried at a time
_LARGEST = 2**17  # denominators; beyond, the distance from a tie is below float32's error anyhow


def odd_ratio(x: Tensor, tolerance: Tensor) -> Tensor:
    """For each positive ``x`` (N,) the ratio P / q (float64) of least odd q within ``tolerance`` (N,), relative.

    An ``x`` for which no q below 2**17 will do stays as it is. The least q has the least P, so the fewer of the two are
    gone through: numerators below 1, denominators from 1 on; about sqrt(x / tolerance) or its inverse of them.
    """
    x, tolerance = x.double(), tolerance.double()
    best, todo, start = x.clone(), torch.arange(len(x)), 0
    while len(todo):
        count = torch.arange(start, start + _BLOCK, dtype=torch.float64)
        start += _BLOCK
        real, within = x[todo, None], tolerance[todo, None]
        first = (
            2 * torch.ceil(((count + 1) / (real * (1 + within)) - 1) / 2) + 1
        )  # odd, where numerator count + 1 can begin
        q = torch.where(real < 1, first, 2 * count + 1)
        ratio = torch.round(real * q) / q
        fits = ((ratio - real).abs() <= within * real) & (ratio > 0) & (q < _LARGEST)
        found = fits.any(1)
        chosen = fits[found].to(torch.uint8).argmax(1, keepdim=True)
        best[todo[found]] = ratio[found].gather(1, chosen)[:, 0]
        todo = todo[~found & (q[:, -1] < _LARGEST)]
    return best


def odd_multiple(x: float, unit: float) -> float:
    """The odd multiple of ``unit`` nearest to ``x``, at least ``unit``: a / b has an odd denominator for all such a, b."""
    return unit * (2 * max(round((x / unit - 1) / 2), 0) + 1)
