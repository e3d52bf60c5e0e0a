"""Min-max: the range seen [Jacob et al. 2018, 1712.05877, section 3.1; Wu et al. 2020, 2004.09602, section 3.3]."""

from __future__ import annotations

from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.quant import QParams
from haqsearch.spec import Format


class MinMax:
    """[min x, max x]: nothing that was seen is clipped. The order of batches is irrelevant."""

    wishes = (HISTOGRAM,)

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        return histogram.min_max(format)
