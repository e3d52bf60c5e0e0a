"""``mx4 mx6 mx9``: shared micro-exponents [Rouhani et al. 2023, 2302.08007].

An element is a sign and an m-bit magnitude, m = 2, 4, 7, without a hidden one. 16 elements of a channel share an 8-bit
exponent E = floor(log2 max|x|), kept with a bias of 127; each 2 of them share one bit t, which is 1 where both lie below
2**E, and halves their step:

    real = code * 2**(E - t - (m - 1))        |code| < 2**m

Bits: (1 + m) + 1/2 + 8/16 = m + 2. Magnitudes are rounded half to even and stop at 2**m - 1, so that E never overflows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from haqsearch.quant.families.family import (
    Field,
    Steps,
    blocks,
    ceil_div,
    exponent,
    first,
    log2,
    power,
    powers_of_two,
    spread,
    symmetric,
)
from haqsearch.spec import Format
from haqsearch.spec.formats import INT8

BLOCK, PAIR, BIAS = 16, 2, 127


class MX:
    """``exponent`` (rows, blocks of 16), ``micro_exponent`` (rows, pairs)."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        mantissa = format.width - 2
        return {
            "codes": Field((rows, length), mantissa + 1, 1 - 2**mantissa),
            "micro_exponent": Field((rows, ceil_div(length, PAIR)), 1),
            "exponent": Field((rows, ceil_div(length, BLOCK)), 8, -BIAS),
        }

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        mantissa, pairs = format.width - 2, ceil_div(x.shape[1], PAIR)
        shared = exponent(blocks(x, BLOCK).abs().amax(2))
        highest = spread(shared, BLOCK // PAIR, pairs)
        micro = (blocks(x, PAIR).abs().amax(2) < power(highest)).to(torch.int64)
        step = power(spread(highest - micro, PAIR, x.shape[1]) - (mantissa - 1))
        limit = 2**mantissa - 1
        codes = torch.round(x / step).clamp_(-limit, limit)
        parts = {"codes": codes, "micro_exponent": micro, "exponent": shared}
        return {name: part.to(torch.int32) for name, part in parts.items()}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        length = parts["codes"].shape[1]
        micro = parts["micro_exponent"]
        e = spread(parts["exponent"], BLOCK // PAIR, micro.shape[1]) - micro
        return parts["codes"].double() * power(spread(e, PAIR, length) - (format.width - 3))

    @staticmethod
    def steps(format: Format) -> Steps:
        limit = 2 ** (format.width - 2) - 1
        return Steps(BLOCK, symmetric(limit), powers_of_two(INT8.code_max // limit), PAIR)

    @staticmethod
    def held(level: Tensor, step: Tensor, format: Format) -> dict[str, Tensor]:
        of_pair = log2(first(step, PAIR))
        of_block = blocks(of_pair, BLOCK // PAIR).amax(
            2
        )  # what a short block is filled up with is 0, the least there is
        micro = spread(of_block, BLOCK // PAIR, of_pair.shape[1]) - of_pair
        parts = {"codes": level, "micro_exponent": micro, "exponent": of_block + (format.width - 3)}
        return {name: part.int() for name, part in parts.items()}
