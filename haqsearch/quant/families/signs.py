"""``binary`` and ``ternary``: signs times one scale by channel.

``binary``: real = a or -a with a = mean|x| [BWN, Rastegari et al. 2016, 1603.05279]; code 1 is a, zero included, 0 is -a.
``ternary``: real = a * code, code -1, 0, 1; it is 0 where |x| <= 0.7 * mean|x|, and a is the mean of the other |x|
[TWN, Li et al. 2016, 1605.04711]. Two bits a code. A channel of zeros has a = 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from haqsearch.quant.families.family import Field
from haqsearch.spec import Format

THRESHOLD = 0.7  # of the mean magnitude


class Binary:
    """``scale`` (rows, 1)."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {"codes": Field((rows, length), 1), "scale": Field((rows, 1), 0)}

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        return {"codes": (x >= 0).to(torch.int32), "scale": x.abs().mean(1, keepdim=True).float()}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        return (2 * parts["codes"].double() - 1) * parts["scale"].double()


class Ternary:
    """``scale`` (rows, 1)."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {"codes": Field((rows, length), 2, -1), "scale": Field((rows, 1), 0)}

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        size = x.abs()
        kept = size > THRESHOLD * size.mean(1, keepdim=True)
        scale = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_(min=1)
        return {"codes": (torch.sign(x) * kept).to(torch.int32), "scale": scale.float()}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        return parts["codes"].double() * parts["scale"].double()
