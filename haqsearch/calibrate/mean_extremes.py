"""Mean of the samples' extremes: one odd sample among n moves the range by a 1/n of itself."""

from __future__ import annotations

from haqsearch.calibrate.statistics import EXTREMES, Extremes
from haqsearch.quant import QParams, affine_params
from haqsearch.spec import Format


class MeanExtremes:
    """[mean over samples of min x, mean over samples of max x], a sample being an index of the first dimension.

    The order of batches and how the data are cut into them are irrelevant, up to the rounding of float64.
    """

    wishes = (EXTREMES,)

    def params(self, extremes: Extremes, *, format: Format) -> QParams:
        low, high = extremes.lows / extremes.samples, extremes.highs / extremes.samples
        return affine_params(min(low, 0.0), max(high, 0.0), format)
