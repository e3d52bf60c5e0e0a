"""ACIQ: the clip of least squared error for a bell of known law [Banner et al. 2019, 1810.05723, section 3]."""

from __future__ import annotations

from math import erfc, exp, pi, sqrt

import numpy as np

from haqsearch.calibrate.observer import noise
from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.quant import QParams, affine_params
from haqsearch.spec import Format

_GAUSS, _LAPLACE = sqrt(2 / pi), sqrt(1 / 2)  # mean magnitude over standard deviation [Geary 1935]


class Aciq:
    """Clip a where rounding and clipping noise balance: k a = E[(|x| - a); |x| > a] under the law that fits the data.

    Laplace of mean magnitude b (eq. 5 and 6):        b exp(-a / b)
    Gauss of standard deviation s (appendix):         s sqrt(2 / pi) exp(-a**2 / 2 s**2) - a erfc(a / (s sqrt(2)))

    k = step**2 / 12 at a = 1, with the format's own step (the paper's, 2 / 2**b, gives k = 4**-b / 3). The law is that whose mean
    magnitude over its standard deviation is nearer the data's. Data of one sign are half of a bell around zero, zeros left out;
    others are centred on their mean for ``uintN``, on zero for ``intN``. The order of batches is irrelevant, up to a bin.
    """

    wishes = (HISTOGRAM,)

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        if histogram.width == 0.0:
            return histogram.min_max(format)
        bins = len(histogram.counts)
        width = histogram.width / bins
        centres = histogram.low + (np.arange(bins) + 0.5) * width
        counts = histogram.counts.astype(float)
        both = histogram.two_sided and histogram.maximum > 0.0
        if not both and counts[np.abs(centres) > width].any():
            counts[np.abs(centres) < width] = 0.0  # the bin of zero
        middle = float(np.average(centres, weights=counts)) if both and format.kind == "uint" else 0.0
        mean = float(np.average(np.abs(centres - middle), weights=counts))
        deviation = sqrt(float(np.average((centres - middle) ** 2, weights=counts)))
        k = noise(histogram, format)
        clip = aciq_clip(mean, deviation, k)
        low, high = max(histogram.minimum, middle - clip), min(histogram.maximum, middle + clip)
        return affine_params(min(low, 0.0), max(high, 0.0), format)


def aciq_clip(mean: float, deviation: float, k: float) -> float:
    """The clip for a bell around 0 of this mean magnitude and standard deviation (> 0), by halving."""
    gauss = abs(mean / deviation - _GAUSS) < abs(mean / deviation - _LAPLACE)

    def beyond(a: float) -> float:
        if gauss:
            return deviation * _GAUSS * exp(-((a / deviation) ** 2) / 2) - a * erfc(a / (deviation * sqrt(2)))
        return mean * exp(-a / mean)

    low, high = 0.0, 64.0 * deviation
    for _ in range(60):
        a = (low + high) / 2
        low, high = (a, high) if k * a < beyond(a) else (low, a)
    return high
