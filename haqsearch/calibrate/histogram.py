"""A streaming histogram: one pass over the data yields the min-max and the least-squared-error range at every width."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.kernels import best_backend, get_backend
from haqsearch.quant import QParams, affine_params
from haqsearch.quant.affine import affine_numbers
from haqsearch.spec import Format

BINS = 2048  # eight bins to every step of an 8-bit range
_CHUNK = 2**16  # values at a time: few enough for the cache, and for torch.histc, whose counts are float32
_LEAST_WIDTH = 2.0**-100
# Four histograms in turn: adding to a bin just added to waits for it, and many neighbours are zeros.
_LANES = (np.arange(_CHUNK) % 4 * (BINS + 1)).astype(np.int32)
_FRACTIONS = np.linspace(0.05, 1.0, 191)


class HistogramObserver:
    """Counts of a tensor's values in BINS equal bins over [low, high], a range that contains 0.

    When a value falls outside, the range doubles and neighbouring bins are merged, so memory does not grow with the data and
    every count stays exact. ``minimum`` and ``maximum`` are the true extremes seen.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.low = 0.0
        self.high = 0.0
        self.minimum = np.inf
        self.maximum = -np.inf

    @property
    def width(self) -> float:
        return self.high - self.low

    def update(self, x: Tensor) -> None:
        """Add every element of ``x`` (any shape, float). Raises DataError on NaN, infinity or an empty tensor."""
        if x.numel() == 0:
            raise DataError(f"{self.name}: calibration got an empty tensor")
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(f"{self.name}: the values hold NaN or infinity; check the data and the weights")
        self.count(x, low, high)

    def count(self, x: Tensor, low: float, high: float) -> None:
        """``update`` for one who knows the extremes of ``x``, which are finite."""
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        if self.width == 0.0:
            self.low, self.high = min(low, 0.0), max(high, 0.0)
            if self.width == 0.0:  # nothing but zeros so far, kept in bin 0 until there is a range
                self.counts[0] += x.numel()
                return
            zeros, self.counts[0] = int(self.counts[0]), 0
            self.counts[min(int(-self.low / self.width * BINS), BINS - 1)] = zeros
        while high > self.high:
            self.counts = np.concatenate([self._merged(), np.zeros(BINS // 2, dtype=np.int64)])
            self.high += self.width
        while low < self.low:
            self.counts = np.concatenate([np.zeros(BINS // 2, dtype=np.int64), self._merged()])
            self.low -= self.width
        values = x.detach().float().flatten().cpu()
        width = np.float32(self.high) - np.float32(self.low)
        if best_backend() == "native" and _LEAST_WIDTH < width < np.inf:
            step = float(width / np.float32(BINS))
            get_backend("native").histogram(values, self.low, step, torch.from_numpy(self.counts))
            return
        array = values.numpy()
        for start in range(0, len(array), _CHUNK):
            self.counts += self._counts(array[start : start + _CHUNK], width)

    def _counts(self, values: np.ndarray, width: np.float32) -> np.ndarray:
        """Counts of float32 ``values`` inside the range: what torch.histc gives to the last bit, in half the time."""
        if not _LEAST_WIDTH < width < np.inf:  # its 2048th part is no normal number
            return torch.histc(torch.from_numpy(values), BINS, self.low, self.high).numpy().astype(np.int64)
        places = (values - np.float32(self.low) if self.low else values) / (width / np.float32(BINS))
        codes = places.astype(np.int32)
        codes += _LANES[: len(codes)]
        counts = np.bincount(codes, minlength=4 * (BINS + 1)).reshape(4, BINS + 1).sum(0)
        counts[BINS - 1] += counts[BINS]  # the upper edge belongs to the last bin
        return counts[:BINS]

    def _merged(self) -> np.ndarray:
        return self.counts.reshape(-1, 2).sum(1)

    def min_max(self, format: Format) -> QParams:
        """Parameters that clip nothing that was seen."""
        self._check_seen()
        return affine_params(min(self.minimum, 0.0), max(self.maximum, 0.0), format)

    def mse(self, format: Format) -> QParams:
        """Parameters of least squared error among 191 shrunken copies of the range seen (both ends by the same fraction)."""
        self._check_seen()
        if self.width == 0.0 or format.is_float:
            return self.min_max(format)
        centres = self.low + (np.arange(BINS) + 0.5) * (self.width / BINS)
        used = self.counts > 0
        centres, counts = centres[used], self.counts[used]
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        least, most = format.code_min, format.code_max
        best, best_error = self.min_max(format), np.inf
        for fraction in _FRACTIONS[::-1]:  # widest first: of equal errors the range that clips nothing wins
            scale, zero_point = affine_numbers(low * fraction, high * fraction, format.kind, (least, most))
            scale = float(np.float32(scale))
            codes = np.minimum(np.maximum(np.rint(centres / scale) + zero_point, least), most)
            error = float(np.dot(counts, ((codes - zero_point) * scale - centres) ** 2))
            if error < best_error:
                best, best_error = QParams(format, scale, zero_point), error
        return best

    def _check_seen(self) -> None:
        if self.minimum > self.maximum:
            raise DataError(f"{self.name}: no range, because no data was seen in calibration")
