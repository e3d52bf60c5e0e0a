"""``vsq4``: two levels of scales, real = gamma * s * code [VS-Quant, Dai et al. 2021, 2102.04503].

Codes -7 .. 7; s an unsigned 4-bit integer by vector of 16 elements of a channel; gamma a float32 by channel. A vector wants
the scale max|x| / 7; gamma is a fifteenth of the largest one wanted in the channel, and s the nearest multiple, at least 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from haqsearch.quant.families.family import Field, Steps, blocks, ceil_div, first, spread, symmetric
from haqsearch.spec import Format

VECTOR, SCALE_WIDTH = 16, 4


class VSQ:
    """``vector_scale`` (rows, vectors), ``scale`` (rows, 1)."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {
            "codes": Field((rows, length), format.width, -(2 ** (format.width - 1))),
            "vector_scale": Field((rows, ceil_div(length, VECTOR)), SCALE_WIDTH),
            "scale": Field((rows, 1), 0),
        }

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        largest = 2 ** (format.width - 1) - 1
        wanted = blocks(x, VECTOR).abs().amax(2) / largest
        gamma = (wanted.amax(1, keepdim=True) / (2**SCALE_WIDTH - 1)).float()
        gamma = torch.where(gamma >= torch.finfo(torch.float32).tiny, gamma, torch.ones_like(gamma))
        s = torch.round(wanted / gamma.double()).clamp_(1, 2**SCALE_WIDTH - 1)
        codes = torch.round(x / (gamma.double() * spread(s, VECTOR, x.shape[1]))).clamp_(-largest, largest)
        return {"codes": codes.to(torch.int32), "vector_scale": s.to(torch.int32), "scale": gamma}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        s = spread(parts["vector_scale"].double(), VECTOR, parts["codes"].shape[1])
        return parts["codes"].double() * s * parts["scale"].double()

    @staticmethod
    def steps(format: Format) -> Steps:
        return Steps(VECTOR, symmetric(2 ** (format.width - 1) - 1), torch.arange(1, 2**SCALE_WIDTH))

    @staticmethod
    def held(level: Tensor, step: Tensor, format: Format) -> dict[str, Tensor]:
        scale = torch.ones(len(level), 1)
        return {"codes": level.int(), "vector_scale": first(step, VECTOR).int(), "scale": scale}
