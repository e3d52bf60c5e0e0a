"""Percentile of the magnitudes [Wu et al. 2020, 2004.09602, section 3.3]."""

from __future__ import annotations

import numpy as np

from haqsearch.calibrate.observer import clipped, magnitudes
from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.errors import RecipeError
from haqsearch.quant import QParams
from haqsearch.spec import Format


class Percentile:
    """Clip at the least magnitude that ``percent`` of the values do not exceed; exact to a bin of the histogram, never below.

    The order of batches is irrelevant, up to a bin. 0 < percent <= 100, otherwise RecipeError.
    """

    wishes = (HISTOGRAM,)

    def __init__(self, percent: float = 99.99) -> None:
        if not 0.0 < percent <= 100.0:
            raise RecipeError(f"percentile: {percent} is not in (0, 100]")
        self.percent = percent

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        if histogram.width == 0.0:
            return histogram.min_max(format)
        counts, width = magnitudes(histogram)
        wanted = counts.sum() * (self.percent / 100.0)
        last = int(np.searchsorted(counts.cumsum(), wanted * (1.0 - 1e-12)))
        return clipped(histogram, (last + 1) * width, format)
