"""What an observer is, and the collector that feeds any number of them from one pass over the data.

An observer says which statistics it wants and how a range follows from them; it holds no data itself. So the many that need
a histogram share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from haqsearch.calibrate.statistics import Batch, Histogram, Statistic, Wish
from haqsearch.errors import DataError, RecipeError
from haqsearch.quant import QParams, affine_params
from haqsearch.spec import Format


class Observer(Protocol):
    """A way to choose a range. To add one: a file, and a line in ``OBSERVERS``."""

    @property
    def wishes(self) -> tuple[Wish, ...]:
        """The statistics it needs."""

    @property
    def params(self) -> Callable[..., QParams]:
        """``params(*statistics, format=F)``: quantization to F from the statistics wished for, in that order; they saw data."""


class Collector:
    """Observes one tensor for several observers: ``update`` as often as there is data, then ``params``.

    The memory taken (``nbytes``) does not grow with the number of updates, but for rows until their reservoir is full.
    """

    def __init__(self, observers: Mapping[str, Observer], name: str = "tensor") -> None:
        self.name, self.observers = name, dict(observers)
        wishes = dict.fromkeys(wish for observer in self.observers.values() for wish in observer.wishes)
        self.statistics: dict[Wish, Statistic] = {wish: wish.start(name) for wish in wishes}
        self.updates = 0

    @property
    def nbytes(self) -> int:
        return sum(statistic.nbytes for statistic in self.statistics.values())

    def update(self, x: Tensor) -> None:
        """Add every element of ``x`` (samples, ...); fewer than two dimensions are one sample.

        Raises DataError, and changes nothing, on NaN, infinity or an empty tensor.
        """
        batch = Batch.of(x, self.name)
        for statistic in self.statistics.values():
            statistic.add(batch)
        self.updates += 1

    def params(self, format: Format, observer: str = "") -> QParams:
        """Quantization to ``format`` (``intN``: symmetric, ``uintN``: with a zero point) by ``observer``, one of its names.

        A collector of one observer needs no name. Raises DataError if no data was seen, RecipeError for an unknown name.
        """
        if not observer and len(self.observers) == 1:
            (observer,) = self.observers
        if observer not in self.observers:
            raise RecipeError(f"{self.name}: observer {observer!r} is none of {', '.join(self.observers)}")
        if not self.updates:
            raise DataError(f"{self.name}: no range, because no data was seen in calibration")
        chosen = self.observers[observer]
        return chosen.params(*(self.statistics[wish] for wish in chosen.wishes), format=format)


def clipped(histogram: Histogram, clip: float, format: Format) -> QParams:
    """Parameters of the range seen and zero, cut to [-clip, clip]."""
    return affine_params(max(min(histogram.minimum, 0.0), -clip), min(max(histogram.maximum, 0.0), clip), format)


def magnitudes(histogram: Histogram) -> tuple[np.ndarray, float]:
    """(Counts of |x| in bins [0, w), [w, 2w), ... up to the largest magnitude seen, w), both sides folded onto each other."""
    width = histogram.width / len(histogram.counts)
    zero = -histogram.low / width
    places = np.floor(np.abs(np.arange(len(histogram.counts)) + 0.5 - zero)).astype(np.int64)
    used = histogram.counts > 0
    return np.bincount(places[used], histogram.counts[used]), width


def noise(histogram: Histogram, format: Format) -> float:
    """Variance of rounding where the clip is 1: step**2 / 12. Data of one side use all codes of ``uintN`` on that side."""
    sides = 2 if format.kind == "uint" and histogram.two_sided and histogram.maximum > 0.0 else 1
    return (sides / format.code_max) ** 2 / 12.0
