"""OCTAV: the clip of least squared error by Newton's method [Sakr et al. 2022, 2206.06501, eq. 6]."""

from __future__ import annotations

import numpy as np

from haqsearch.calibrate.observer import clipped, magnitudes, noise
from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.quant import QParams
from haqsearch.spec import Format

_ITERATIONS = 100
_NEARBY = np.linspace(0.8, 1.05, 251)


class Octav:
    """Clip s that minimises J(s) = k s**2 P(0 < |x| <= s) + E[(|x| - s)**2; |x| > s], rounding noise and clipping noise.

    Newton's step, the derivative of P left out as in the paper, is s <- E[|x|; |x| > s] / (k P(0 < |x| <= s) + P(|x| > s)). The
    paper's k = 4**-b / 3 is step**2 / 12 at s = 1 for a step of 2 / 2**b; here the step is the format's own: 1 / (2**(b-1) - 1)
    for ``intb``, 1 / (2**b - 1) for ``uintb`` of data of one sign, twice that for both signs. What falls into the bin of zero
    counts as zero. A step that leaves the interval known to hold the solution is replaced by a halving, so it always converges.
    What is left out makes the solution some per cent too wide at 2 and 3 bits, so the least J between 0.8 and 1.05 of it is
    taken. The order of batches is irrelevant, up to a bin.
    """

    wishes = (HISTOGRAM,)

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        if histogram.width == 0.0:
            return histogram.min_max(format)
        return clipped(histogram, octav_clip(*magnitudes(histogram), noise(histogram, format)), format)


def octav_clip(counts: np.ndarray, width: float, k: float) -> float:
    """The clip for magnitudes counted in bins of ``width``, taken as spread evenly inside each."""
    edges = np.arange(len(counts) + 1) * width
    weighted = counts * (edges[:-1] + width / 2)
    above = np.append(counts[::-1].cumsum()[::-1], 0.0)  # [i]: values beyond edge i
    sum_above = np.append(weighted[::-1].cumsum()[::-1], 0.0)
    square_above = np.append((counts * (edges[:-1] + width / 2) ** 2)[::-1].cumsum()[::-1], 0.0)
    nonzero = above[1]
    low, high = 0.0, edges[-1]
    s = sum_above[0] / above[0]
    for _ in range(_ITERATIONS):
        beyond, total = np.interp(s, edges, above), np.interp(s, edges, sum_above)
        inside = max(nonzero - beyond, 0.0)
        slope = k * s * inside - (
            total - s * beyond
        )  # half of J'(s): increasing, so its sign says where the solution is
        low, high = (s, high) if slope < 0 else (low, s)
        weight = k * inside + beyond
        step = total / weight if weight else low
        if not low < step < high:
            step = (low + high) / 2
        if abs(step - s) <= 1e-9 * s:
            break
        s = step
    near = s * _NEARBY
    beyond, total, squares = (np.interp(near, edges, sums) for sums in (above, sum_above, square_above))
    errors = k * near**2 * np.maximum(nonzero - beyond, 0.0) + squares - 2 * near * total + beyond * near**2
    return float(near[np.argmin(errors)])
