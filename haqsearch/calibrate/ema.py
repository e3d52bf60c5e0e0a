"""Exponential moving average of the batches' extremes [Jacob et al. 2018, 1712.05877, section 3.1]."""

from __future__ import annotations

from haqsearch.calibrate.statistics import Decayed, DecayedExtremes
from haqsearch.errors import RecipeError
from haqsearch.quant import QParams, affine_params
from haqsearch.spec import Format


class Ema:
    """r_t <- alpha * r_batch + (1 - alpha) * r_(t-1), for the minimum and the maximum, beginning with the first batch's.

    Depends on the order of batches and on how the data are cut into them: the last weigh most. 0 < alpha <= 1, otherwise
    RecipeError.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        if not 0.0 < alpha <= 1.0:
            raise RecipeError(f"ema: alpha is {alpha}, not in (0, 1]")
        self.wishes = (Decayed(alpha),)

    def params(self, extremes: DecayedExtremes, *, format: Format) -> QParams:
        return affine_params(min(extremes.low, 0.0), max(extremes.high, 0.0), format)
