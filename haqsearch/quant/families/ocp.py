"""``mxfp4 mxfp6 mxfp8 mxint8``: OCP Microscaling Formats (MX) v1.0.

32 elements of a channel share a power of two, X = 2**(floor(log2 max|x|) - emax), kept as 8 bits with a bias of 127 (E8M0).
An element is a small float, sign, exponent and mantissa: E2M1 (``mxfp4``), E2M3 (``mxfp6``; of the standard's two the
more exact), E4M3 (``mxfp8``; largest 448, no infinity, its NaN never used); or an integer times 2**-6 (``mxint8``, -127 .. 127).
What is beyond the largest element becomes it; ties go to even; there is no negative zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log

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

BLOCK, BIAS = 32, 127


@dataclass(frozen=True)
class Element:
    """A small float: ``mantissa`` bits, exponents from ``emin`` to ``emax``, the ``largest`` value."""

    mantissa: int
    emin: int
    emax: int
    largest: float


_ELEMENTS = {4: Element(1, 0, 2, 6.0), 6: Element(3, 0, 2, 7.5), 8: Element(3, -6, 8, 448.0)}


class OCP:
    """``exponent`` (rows, blocks of 32). Codes: of floats the bits of the standard, of integers the integers."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {
            "codes": Field((rows, length), format.width, -128 if format.kind == "mxint" else 0),
            "exponent": Field((rows, ceil_div(length, BLOCK)), 8, -BIAS),
        }

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        emax = 0 if format.kind == "mxint" else _ELEMENTS[format.width].emax
        shared = (exponent(blocks(x, BLOCK).abs().amax(2)) - emax).clamp_(min=-BIAS)
        scaled = x / power(spread(shared, BLOCK, x.shape[1]))
        if format.kind == "mxint":
            codes = torch.round(scaled * 64).clamp_(-127, 127)
        else:
            codes = _bits(scaled, _ELEMENTS[format.width], format.width)
        return {"codes": codes.to(torch.int32), "exponent": shared.to(torch.int32)}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        codes = parts["codes"].long()
        if format.kind == "mxint":
            values = codes.double() / 64
        else:
            sign = 2 ** (format.width - 1)
            magnitude = _magnitude(codes % sign, _ELEMENTS[format.width])
            values = torch.where(codes >= sign, -magnitude, magnitude)
        return values * power(spread(parts["exponent"], BLOCK, codes.shape[1]))

    @staticmethod
    def steps(format: Format) -> Steps:
        levels = symmetric(INT8.code_max)
        if format.kind == "mxfp":
            element, unit = _ELEMENTS[format.width], _unit(format)
            sizes = _magnitude(torch.arange(2 ** (format.width - 1)), element) / unit
            sizes = sizes[
                (sizes == sizes.round()) & (sizes <= element.largest / unit)
            ].long()  # E4M3 has a NaN beyond it
            levels = torch.unique(torch.cat([-sizes, sizes]))
        return Steps(BLOCK, levels, powers_of_two(INT8.code_max // int(levels.max())))

    @staticmethod
    def held(level: Tensor, step: Tensor, format: Format) -> dict[str, Tensor]:
        unit = _unit(format)
        codes = level if format.kind == "mxint" else _bits(level.double() * unit, _ELEMENTS[format.width], format.width)
        shared = log2(first(step, BLOCK)) - int(log2(torch.tensor(unit)))
        return {"codes": codes.int(), "exponent": shared.int()}


def _unit(format: Format) -> float:
    """The finest element, or the finest power of two of which 127 reach the largest element."""
    if format.kind == "mxint":
        return 2.0**-6
    element = _ELEMENTS[format.width]
    return max(2.0 ** (element.emin - element.mantissa), 2.0 ** ceil(log(element.largest / INT8.code_max, 2)))


def _bits(x: Tensor, element: Element, width: int) -> Tensor:
    """Nearest elements of ``x`` as sign, exponent and mantissa bits."""
    size = x.abs().clamp(max=element.largest)
    e = torch.frexp(size)[1].to(torch.int64) - 1
    e = torch.where(size > 0, e, element.emin).clamp_(min=element.emin)
    steps = torch.round(
        size / power(e - element.mantissa)
    ).long()  # hidden one included; 2**(mantissa + 1) carries over
    code = (
        (e - element.emin) << element.mantissa
    ) + steps  # a subnormal has e = emin and no hidden one: steps < 2**mantissa
    return code + ((x < 0) & (code > 0)).long() * 2 ** (width - 1)


def _magnitude(code: Tensor, element: Element) -> Tensor:
    hidden = 1 << element.mantissa
    field, fraction = code >> element.mantissa, code % hidden
    steps = torch.where(field > 0, fraction + hidden, fraction).double()
    return steps * power(element.emin + (field - 1).clamp_(min=0) - element.mantissa)
