"""Statistics of a tensor's values that observers draw ranges from; each takes memory that does not grow with the data.

A *wish* (``HISTOGRAM``, ``EXTREMES``, ``Decayed(0.1)``, ``Rows()``) is a value; ``start()`` gives the statistic itself. Equal
wishes of several observers are one statistic, filled once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from haqsearch.calibrate.histogram import HistogramObserver
from haqsearch.errors import DataError


@dataclass(frozen=True)
class Batch:
    """One update: ``x`` (samples, ...), float32, finite; ``lows`` and ``highs`` (samples), float64, its samples' extremes."""

    x: Tensor
    lows: np.ndarray
    highs: np.ndarray
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor, name: str) -> Batch:
        """``x`` of any shape; one of fewer than two dimensions is one sample. Raises DataError on NaN, infinity or nothing."""
        if x.numel() == 0:
            raise DataError(f"{name}: calibration got an empty tensor")
        x = x.detach().float()
        rows = x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)
        array = rows.cpu().numpy()  # torch.aminmax along a dimension takes twenty times as long
        lows, highs = array.min(1).astype(np.float64), array.max(1).astype(np.float64)
        low, high = float(lows.min()), float(highs.max())
        if not (abs(low) < torch.inf and abs(high) < torch.inf):  # NaN fails too
            raise DataError(f"{name}: the values hold NaN or infinity; check the data and the weights")
        return cls(rows, lows, highs, low, high)


class Statistic(Protocol):
    """What is remembered of a tensor."""

    def add(self, batch: Batch) -> None: ...

    @property
    def nbytes(self) -> int: ...


class Wish(Protocol):
    """A statistic that an observer wants; hashable."""

    def start(self, name: str) -> Statistic: ...


class Histogram(HistogramObserver):
    """Counts in equal bins, and the true extremes."""

    def add(self, batch: Batch) -> None:
        self.count(batch.x, batch.low, batch.high)

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes

    @property
    def two_sided(self) -> bool:
        """Whether a negative value was seen."""
        return self.minimum < 0.0


@dataclass(frozen=True)
class _HistogramWish:
    def start(self, name: str) -> Histogram:
        return Histogram(name)


class Extremes:
    """Sums of every sample's minimum and maximum."""

    nbytes = 24

    def __init__(self) -> None:
        self.samples, self.lows, self.highs = 0, 0.0, 0.0

    def add(self, batch: Batch) -> None:
        self.samples += len(batch.lows)
        self.lows += float(batch.lows.sum())
        self.highs += float(batch.highs.sum())


@dataclass(frozen=True)
class _ExtremesWish:
    def start(self, name: str) -> Extremes:
        return Extremes()


class DecayedExtremes:
    """Extremes of batches, r <- alpha * r_batch + (1 - alpha) * r; the first batch's as they are."""

    nbytes = 24

    def __init__(self, alpha: float) -> None:
        self.alpha, self.low, self.high, self.batches = alpha, 0.0, 0.0, 0

    def add(self, batch: Batch) -> None:
        alpha = self.alpha if self.batches else 1.0
        self.low = alpha * batch.low + (1.0 - alpha) * self.low
        self.high = alpha * batch.high + (1.0 - alpha) * self.high
        self.batches += 1


@dataclass(frozen=True)
class Decayed:
    """Wish for batch extremes averaged with weight ``alpha`` on the newest."""

    alpha: float

    def start(self, name: str) -> DecayedExtremes:
        return DecayedExtremes(self.alpha)


class Reservoir:
    """An even random choice of the samples seen, each kept whole as a row: ``values`` (rows, length).

    Every row draws a number and those of the smallest are kept, as many as ``elements`` hold and at least one. Until it is
    full, it holds all; from then on which rows it holds depends on the order of batches.
    """

    def __init__(self, elements: int, seed: int, name: str) -> None:
        self.elements, self.name = elements, name
        self.values, self.draws = torch.empty(0, 0), torch.empty(0, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.draws.nbytes

    def add(self, batch: Batch) -> None:
        length = batch.x.shape[1]
        if len(self.draws) and self.values.shape[1] != length:
            raise DataError(f"{self.name}: a sample of {length} values after samples of {self.values.shape[1]}")
        room = max(self.elements // length, 1)
        drawn = torch.rand(len(batch.x), generator=self._generator, dtype=torch.float64)
        draws = torch.cat([self.draws, drawn])
        kept = draws.argsort()[:room].sort().values
        old, new = kept[kept < len(self.draws)], kept[kept >= len(self.draws)] - len(self.draws)
        rows = batch.x[new].cpu()
        self.values = torch.cat([self.values[old], rows]) if len(old) else rows.clone()
        self.draws = draws[kept]


@dataclass(frozen=True)
class Rows:
    """Wish for a reservoir of whole samples, of ``elements`` numbers in all."""

    elements: int = 2**16
    seed: int = 0

    def start(self, name: str) -> Reservoir:
        return Reservoir(self.elements, self.seed, name)


HISTOGRAM = _HistogramWish()
EXTREMES = _ExtremesWish()
