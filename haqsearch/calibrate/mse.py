"""Least squared error by trying ranges."""

from __future__ import annotations

from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.quant import QParams
from haqsearch.spec import Format


class Mse:
    """argmin over f of E[(x - dq(q(x)))**2] for the ranges [f min x, f max x], 191 fractions f from 0.05 to 1.

    The expectation is over the histogram, a value standing at the middle of its bin; the order of batches is irrelevant, up to
    a bin.
    """

    wishes = (HISTOGRAM,)

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        return histogram.mse(format)
