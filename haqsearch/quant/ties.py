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

_BLOCK = 1024  # odd denominators tried at a time
_LARGEST = 2**17  # denominators; beyond, the distance from a tie is below float32's error anyhow


def odd_ratio(x: Tensor, tolerance: Tensor) -> Tensor:
    """For each positive ``x`` (N,) the ratio P / q (float64) of least odd q within ``tolerance`` (N,), relative.

    About 1 / sqrt(x * tolerance) denominators have to be tried. An ``x`` for which none below 2**17 will do stays as it is.
    """
    x = x.double()
    best, todo = x.clone(), torch.arange(len(x))
    for start in range(1, _LARGEST, 2 * _BLOCK):
        if not len(todo):
            break
        q = torch.arange(start, start + 2 * _BLOCK, 2, dtype=torch.float64)
        ratio = torch.round(x[todo, None] * q) / q
        fits = ((ratio - x[todo, None]).abs() <= (tolerance * x)[todo, None]) & (ratio > 0)
        found = fits.any(1)
        first = fits[found].to(torch.uint8).argmax(1, keepdim=True)
        best[todo[found]] = ratio[found].gather(1, first)[:, 0]
        todo = todo[~found]
    return best


def odd_multiple(x: float, unit: float) -> float:
    """The odd multiple of ``unit`` nearest to ``x``, at least ``unit``: a / b has an odd denominator for all such a, b."""
    return unit * (2 * max(round((x / unit - 1) / 2), 0) + 1)
