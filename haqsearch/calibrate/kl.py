"""KL divergence (entropy calibration) [Migacz 2017, 8-bit inference with TensorRT, GTC]."""

from __future__ import annotations

import numpy as np

from haqsearch.calibrate.observer import clipped, magnitudes
from haqsearch.calibrate.statistics import HISTOGRAM, Histogram
from haqsearch.quant import QParams
from haqsearch.spec import Format

_CANDIDATES = 256


class Kl:
    """Clip that minimises D(P || Q) = sum P log(P / Q) over the histogram of |x|.

    P is the histogram up to the clip, all beyond it added to the last bin; Q is the histogram up to the clip merged into as many
    levels as the format has magnitudes, each level spread evenly over its bins that are not empty. The bin of zero counts no
    more than its neighbour, for zero is exact in every format, and a spike of zeros (ReLU's) would outweigh all else. Candidates
    are the upper edges of 256 of the bins that are not empty, from as many bins as there are levels; of equal ones the widest.
    A format with more levels than there are bins keeps the range seen. The order of batches is irrelevant, up to a bin.
    """

    wishes = (HISTOGRAM,)

    def params(self, histogram: Histogram, *, format: Format) -> QParams:
        if histogram.width == 0.0:
            return histogram.min_max(format)
        levels = format.code_max + 1
        if format.kind == "uint" and histogram.two_sided and histogram.maximum > 0.0:
            levels = levels // 2
        counts, width = magnitudes(histogram)
        return clipped(histogram, kl_bins(counts, levels) * width, format)


def kl_bins(counts: np.ndarray, levels: int) -> int:
    """How many of the bins of magnitudes to keep."""
    counts = np.concatenate([np.minimum(counts[:1], counts[1:2]), counts[1:]]) if len(counts) > 1 else counts
    ends = np.flatnonzero(counts) + 1
    whole = int(ends[-1])
    ends = ends[ends >= levels]
    if len(ends) == 0:
        return whole
    chosen = ends[np.unique(np.linspace(0, len(ends) - 1, _CANDIDATES).round().astype(int))]
    best, least = whole, np.inf
    total = counts.sum()
    for end in chosen[::-1]:
        kept = counts[:end]
        starts = np.arange(levels) * end // levels
        used = kept > 0
        sums, members = np.add.reduceat(kept, starts), np.add.reduceat(used.astype(float), starts)
        means = sums / np.maximum(members, 1.0)
        inside = kept.sum()
        q = np.repeat(means, np.diff(np.append(starts, end)))[used] / inside
        p = kept[used] / total
        p[-1] += (total - inside) / total  # the last bin is never empty
        divergence = float(np.dot(p, np.log(p / q)))
        if divergence < least - 1e-12:
            best, least = int(end), divergence
    return best
