"""``int1..int16`` and ``uint1..uint16``: real = scale * (code - zero_point) [Jacob et al. 2018, 1712.05877, eq. 1].

The range of a tensor, a channel or a group of a channel is its least and largest value, widened to contain zero. ``int`` is
symmetric: codes -(2**(b-1) - 1) .. 2**(b-1) - 1 and no zero point. That would leave one bit with no code but 0, so ``int1``
has two's complement's -1 and 0: zero stays exact, and what is positive becomes zero (``binary`` has both signs).
``uint`` has codes 0 .. 2**b - 1 and a zero point that is one of them; subtract 2**(b-1) from both for signed codes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.quant.families.family import Field, Steps, blocks, ceil_div, first, spread, symmetric
from haqsearch.spec import Format
from haqsearch.spec.formats import INT8, USUAL


def code_range(format: Format) -> tuple[int, int]:
    """Least and largest code of an int or uint format, whatever shares its scale."""
    if format.kind == "uint":
        return 0, 2**format.width - 1
    return (-1, 0) if format.width == 1 else (1 - 2 ** (format.width - 1), 2 ** (format.width - 1) - 1)


class Affine:
    """Scales are (blocks of rows, blocks of columns): (1, 1) by tensor, (rows, 1) by channel, (rows, groups) by group."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        granularity = format.granularity or USUAL[format.kind]
        groups = ceil_div(length, format.group) if granularity == "group" else 1
        shared = (1 if granularity == "tensor" else rows, groups)
        low = 0 if format.kind == "uint" else -(2 ** (format.width - 1))
        parts = {"codes": Field((rows, length), format.width, low), "scale": Field(shared, 0)}
        return {**parts, "zero_point": Field(shared, format.width)} if format.kind == "uint" else parts

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        rows = Affine.layout(format, *x.shape)["scale"].shape[0]
        view = x if format.group else x.reshape(rows, -1)
        cut = blocks(view, format.group or view.shape[1])
        low, high = cut.amin(2).clamp_(max=0), cut.amax(2).clamp_(min=0)
        lowest, highest = code_range(format)
        if format.kind == "uint":
            scale = (high - low) / highest
        else:
            scale = -low if format.width == 1 else torch.maximum(-low, high) / highest
        if bool((scale > torch.finfo(torch.float32).max).any()):
            raise DataError(
                f"cannot quantize to {format}: the range of the values is so wide that its scale is beyond float32"
            )
        scale = scale.float()
        scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
        parts = {"scale": scale}
        zero_point = torch.zeros_like(low)
        if format.kind == "uint":
            zero_point = torch.round(-low / scale.double()).clamp_(lowest, highest)
            parts["zero_point"] = zero_point.to(torch.int32)
        codes = torch.round(x / _wide(scale.double(), format, x.shape)) + _wide(zero_point, format, x.shape)
        return {"codes": codes.clamp_(lowest, highest).to(torch.int32), **parts}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        codes = parts["codes"].double()
        if "zero_point" in parts:
            codes -= _wide(parts["zero_point"].double(), format, codes.shape)
        return codes * _wide(parts["scale"].double(), format, codes.shape)

    @staticmethod
    def steps(format: Format) -> Steps:
        _, highest = code_range(format)
        return Steps(format.group, symmetric(highest), torch.arange(1, INT8.code_max // highest + 1))

    @staticmethod
    def held(level: Tensor, step: Tensor, format: Format) -> dict[str, Tensor]:
        return {"codes": level.int(), "scale": first(step, format.group).float()}


def _wide(shared: Tensor, format: Format, shape: torch.Size) -> Tensor:
    """``shared`` in a shape that broadcasts with (rows, length)."""
    return spread(shared, format.group, shape[1]) if format.group else shared
