"""Integer weights as the matrix-product kernel reads them: 1, 2, 4 or 8 bits each, unpacked in registers.

A code is ``first + step * field``, a field the fewest bits of 1, 2, 4, 8 that hold every code of the tensor: codes of 3 bits
take 4, of 5 to 7 bits take 8, and two codes take 1 whatever they are (-1 and 1: first -1, step 2). An output channel's
inputs (ky, kx, channel) are cut into blocks of ``8 / bits`` planes of ``PLANE`` inputs; byte j of a block holds the j-th
input of each plane, the first in its lowest bits. So one byte loaded gives an operand of 8 / bits matrix products, and no
bits change places between threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from haqsearch.errors import ModelError
from haqsearch.quant.packing import pack_bits

PLANE = 32
"""Inputs of one int8 matrix product: the depth of the tensor cores' instruction."""

MAX_MAGNITUDE = (2**31 - 1) // 128
"""Largest sum of |w| over an output channel for which 8-bit activations cannot take an int32 partial sum out of range."""


@dataclass(frozen=True)
class PackedWeight:
    """``data`` uint8 (N, blocks, PLANE), ``sums`` int64 (N,): the sum of each output channel's codes."""

    data: Tensor
    sums: Tensor
    bits: int
    first: int
    step: int
    wide: bool
    """Whether a partial sum could leave int32, so that each block's is added up in 64 bits."""


_cache: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed(weight: Tensor) -> PackedWeight:
    """``weight`` (N, ...) packed; once per tensor, and again if it was changed in place. It goes when the tensor goes."""
    version = 0 if weight.is_inference() else weight._version
    known = _cache.get(weight)
    if known is None or known[0] != version:
        known = _cache[weight] = (version, pack(weight))
    return known[1]


def pack(weight: Tensor) -> PackedWeight:
    """Pack int8 codes (N, K) or (N, C, kh, kw). Raises ModelError if they are not int8."""
    if weight.dtype != torch.int8:
        raise ModelError(f"weights are int8 codes, not {weight.dtype}; quantize them first")
    rows = (weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight).flatten(1).to(torch.int64)
    first, last = int(rows.min()), int(rows.max())
    step = last - first if bool(((rows == first) | (rows == last)).all()) else 1
    largest = (last - first) // max(step, 1)
    bits = next(bits for bits in (1, 2, 4, 8) if largest < 2**bits)
    planes = 8 // bits
    fields = F.pad((rows - first) // max(step, 1), (0, -rows.shape[1] % (planes * PLANE)))
    fields = fields.view(len(rows), -1, planes, PLANE).transpose(2, 3)
    data = pack_bits(fields.cpu(), bits).view(len(rows), -1, PLANE).to(weight.device)
    wide = int(rows.abs().sum(1).max()) > MAX_MAGNITUDE
    return PackedWeight(data, rows.sum(1), bits, first, step, wide)


def taps_first(weight: Tensor) -> Tensor:
    """Depthwise weights (N, 1, kh, kw) as (kh * kw, N), neighbours in memory being read by neighbouring threads."""
    return weight.flatten(1).t().contiguous()
