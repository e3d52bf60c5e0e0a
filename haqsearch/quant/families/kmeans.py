"""``kmeans1..kmeans8``: codes are indices into a codebook of 2**b float32 [Deep Compression, Han et al. 2016, 1510.00149].

Lloyd's algorithm on the sorted values: a cluster is a stretch of them, its mean a difference of running sums. It starts from
the grids of linear quantization (``uint``, ``int`` by tensor) and from quantiles, and the best end is taken; as no step raises
the error, the codebook is never worse than the linear grids. Up to 2**b different values are kept exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from haqsearch.quant.families.affine import Affine, code_range
from haqsearch.quant.families.family import Field
from haqsearch.spec import Format

STEPS = 100  # of Lloyd's algorithm at most; it ends where the codebook stays


class KMeans:
    """``codebook`` (2**b,), ascending."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        return {"codes": Field((rows, length), format.width), "codebook": Field((2**format.width,), 0)}

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        codebook = _codebook(x, format)
        codes = _nearest(x.numpy(), codebook)
        return {"codes": torch.from_numpy(codes.astype(np.int32)), "codebook": torch.from_numpy(codebook).float()}

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        return parts["codebook"].double()[parts["codes"].long()]


def _codebook(x: Tensor, format: Format) -> np.ndarray:
    """2**b ascending float32 values, as float64."""
    values = np.sort(x.numpy(), axis=None)
    different, size = np.unique(values), 2**format.width
    if len(different) <= size:
        return _filled(different, size)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = [_linear(x, Format(kind, format.width, "tensor"), size) for kind in ("uint", "int")]
    starts.append(np.quantile(values, (np.arange(size) + 0.5) / size))
    tried = [_float32(book) for start in starts for book in (start, _lloyd(values, sums, start))]
    best = min(tried, key=lambda book: float(np.square(book[_nearest(values, book)] - values).sum()))
    return _filled(best[np.unique(_nearest(values, best))], size)  # an entry that no value takes must set no scale


def _filled(book: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([book, np.full(size - len(book), book[-1])])


def _linear(x: Tensor, format: Format, size: int) -> np.ndarray:
    lowest, highest = code_range(format)
    parts = Affine.encode(x, format)
    codes = torch.arange(lowest, highest + 1)[None]
    grid = Affine.decode({**parts, "codes": codes}, format)[0].numpy()
    return _filled(grid, size)


def _lloyd(values: np.ndarray, sums: np.ndarray, book: np.ndarray) -> np.ndarray:
    for _ in range(STEPS):
        edges = np.concatenate([[0], np.searchsorted(values, (book[:-1] + book[1:]) / 2), [len(values)]])
        count = np.diff(edges)
        means = np.where(count > 0, np.diff(sums[edges]) / np.maximum(count, 1), book)  # an empty cluster stays
        if np.array_equal(means, book):
            break
        book = np.sort(means)
    return book


def _nearest(values: np.ndarray, book: np.ndarray) -> np.ndarray:
    return np.searchsorted((book[:-1] + book[1:]) / 2, values)


def _float32(book: np.ndarray) -> np.ndarray:
    return book.astype(np.float32).astype(np.float64)
