"""``float16 bfloat16 float32``: codes are the bits of the value, read as a signed integer.

Rounded to the nearest, half to even; a value beyond the largest finite one becomes it, never infinity.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from haqsearch.quant.families.family import Field
from haqsearch.spec import Format

_TYPES = {
    ("float", 16): (torch.float16, torch.int16),
    ("bfloat", 16): (torch.bfloat16, torch.int16),
    ("float", 32): (torch.float32, torch.int32),
}


class Floats:
    """No parameters."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {"codes": Field((rows, length), format.width, -(2 ** (format.width - 1)))}

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        real, integer = _TYPES[format.kind, format.width]
        limit = torch.finfo(real).max
        # x holds float32 values: one rounding, from float32, as x.half() does it
        return {"codes": x.float().clamp(-limit, limit).to(real).view(integer).to(torch.int32)}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        real, integer = _TYPES[format.kind, format.width]
        return parts["codes"].to(integer).view(real).double()
