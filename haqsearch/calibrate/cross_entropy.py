"""Cross-entropy of what softmax makes of logits before and after quantization."""

from __future__ import annotations

import numpy as np
import torch

from haqsearch.calibrate.statistics import HISTOGRAM, Histogram, Reservoir, Rows
from haqsearch.quant import QParams, affine_params, dequantize, quantize
from haqsearch.spec import Format

_FRACTIONS = np.linspace(0.05, 1.0, 96)


class CrossEntropy:
    """argmin over f of -sum softmax(v) log softmax(dq(q(v))), mean over samples v, for the ranges [f min v, f max v].

    For logits: a sample is an index of the first dimension, and softmax runs over all its values. Computed on a reservoir of
    whole samples, all of them while they have at most 65,536 values; beyond that which are kept, and so the range, depends on
    the order of batches. 96 fractions f from 0.05 to 1; of equal ones the widest.
    """

    wishes = (HISTOGRAM, Rows())

    def params(self, histogram: Histogram, reservoir: Reservoir, *, format: Format) -> QParams:
        logits = reservoir.values
        wanted = torch.softmax(logits.double(), dim=1)
        low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
        best, least = histogram.min_max(format), np.inf
        for fraction in _FRACTIONS[::-1]:
            params = affine_params(low * fraction, high * fraction, format)
            got = torch.log_softmax(dequantize(quantize(logits, params), params).double(), dim=1)
            entropy = -float((wanted * got).sum()) / len(logits)
            if entropy < least - 1e-12:
                best, least = params, entropy
        return best
