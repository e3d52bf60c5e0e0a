"""Requantization in integers: multiply by a positive real with one 64-bit multiply, add and shift.

A real multiplier M is held as M = M0 * 2**-n with M0 a 31-bit integer in [2**30, 2**31) [Jacob et al. 2018, section 2.2].
The one rounding rule of the project, used by every backend, is half up:

    requantize(acc) = clamp(((acc * M0 + 2**(n-1)) >> n) + zero_point)

Unlike gemmlowp's doubling high multiply followed by a rounding shift it rounds once, and it is one multiply-add and one
shift on every machine. |acc| < 2**31 and M0 < 2**31, so the sum stays below 2**63.
"""

from __future__ import annotations

import torch
from torch import Tensor

from haqsearch.errors import ModelError

MAX_SHIFT = 62
MULTIPLIER_BITS = 31


def decompose(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Fixed-point form (M0, n), both int64 of ``multiplier``'s shape, of positive reals below 2**30 - 1/4.

    M0 / 2**n is within 2**-31 of M, relatively, unless M < 2**-32 where it is within 2**-63 absolutely.
    Raises ModelError for a multiplier that is not positive and finite, or is too large.
    """
    m = multiplier.double()
    if not bool(torch.isfinite(m).all()) or bool((m <= 0).any()) or bool((m >= 2.0**30 - 0.25).any()):
        raise ModelError(f"requantization multiplier out of range (0, 2**30): {float(m.min())} .. {float(m.max())}")
    fraction, exponent = torch.frexp(m)
    m0 = torch.round(fraction * 2.0**MULTIPLIER_BITS).to(torch.int64)
    shift = MULTIPLIER_BITS - exponent.to(torch.int64)
    rounded_up = m0 == 2**MULTIPLIER_BITS
    m0, shift = torch.where(rounded_up, m0 // 2, m0), torch.where(rounded_up, shift - 1, shift)
    tiny = shift > MAX_SHIFT
    return torch.where(tiny, torch.round(m * 2.0**MAX_SHIFT).to(torch.int64), m0), shift.clamp(max=MAX_SHIFT)


def requantize(acc: Tensor, m0: Tensor, shift: Tensor) -> Tensor:
    """round_half_up(acc * m0 / 2**shift) as int64; ``acc`` integer, ``m0`` and ``shift`` (>= 1) broadcast against it."""
    product = acc.to(torch.int64) * m0
    return product.add_(torch.ones_like(shift) << (shift - 1)).bitwise_right_shift_(shift)
