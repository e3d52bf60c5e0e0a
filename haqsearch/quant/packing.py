"""Integers of 1 to 32 bits, one after another without gaps: n of b bits take ceil(n * b / 8) bytes.

Value i takes the bits i * b .. i * b + b - 1, bit k of the stream being bit k % 8 of byte k // 8: the least significant first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from haqsearch.errors import DataError

_CHUNK = 1 << 20  # values at a time, a multiple of 8, so that a chunk is whole bytes; bounds the memory of single bits


def pack_bits(values: Tensor, width: int) -> Tensor:
    """``values`` (any shape, integers 0 .. 2**width - 1) as bytes (uint8, 1-D). Raises DataError for one beyond them."""
    flat = values.reshape(-1).to(torch.int64)
    _check_width(width)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= 2**width):
        raise DataError(f"cannot pack {int(flat.min())} .. {int(flat.max())} in {width} bits")
    if width in (8, 16, 32):
        return torch.from_numpy(flat.numpy().astype(f"<u{width // 8}").view(np.uint8))
    places = np.arange(width)
    chunks = [
        np.packbits((part[:, None] >> places & 1).astype(np.uint8), bitorder="little")
        for part in (flat[start : start + _CHUNK].numpy() for start in range(0, len(flat), _CHUNK))
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *chunks]))


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` integers (int64, 1-D) of ``pack_bits``. Raises DataError if the bytes are not those of so many."""
    _check_width(width)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(packed) != (count * width + 7) // 8:
        raise DataError(
            f"{count} integers of {width} bits take {(count * width + 7) // 8} bytes, "
            f"not {packed.dtype} of shape {tuple(packed.shape)}"
        )
    data = packed.numpy()
    if width in (8, 16, 32):
        return torch.from_numpy(np.ascontiguousarray(data).view(f"<u{width // 8}").astype(np.int64))
    weights = 1 << np.arange(width, dtype=np.int64)
    found = np.zeros(count, np.int64)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        part = data[start * width // 8 : ((start + size) * width + 7) // 8]
        bits = np.unpackbits(part, bitorder="little", count=size * width)
        found[start : start + size] = bits.reshape(size, width) @ weights
    return torch.from_numpy(found)


def _check_width(width: int) -> None:
    if not 1 <= width <= 32:
        raise DataError(f"cannot pack integers of {width} bits: 1 to 32")
