"""Observers: what a calibration pass remembers of a tensor, and the ranges that follow from it.

collector = collect(["mse", "octav"], "conv1")
collector.update(batch)                            # as often as there is data; one histogram serves both
collector.params(Format.parse("uint4"), "octav")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from haqsearch.calibrate.aciq import Aciq
from haqsearch.calibrate.cross_entropy import CrossEntropy
from haqsearch.calibrate.ema import Ema
from haqsearch.calibrate.histogram import HistogramObserver
from haqsearch.calibrate.kl import Kl
from haqsearch.calibrate.mean_extremes import MeanExtremes
from haqsearch.calibrate.min_max import MinMax
from haqsearch.calibrate.mse import Mse
from haqsearch.calibrate.observer import Collector, Observer
from haqsearch.calibrate.octav import Octav
from haqsearch.calibrate.percentile import Percentile
from haqsearch.errors import RecipeError

OBSERVERS: Mapping[str, Callable[[], Observer]] = {
    "min_max": MinMax,
    "ema": Ema,
    "mean_extremes": MeanExtremes,
    "percentile": Percentile,
    "mse": Mse,
    "octav": Octav,
    "kl": Kl,
    "aciq": Aciq,
    "cross_entropy": CrossEntropy,
}


def collect(observers: Iterable[str], name: str = "tensor") -> Collector:
    """A collector for the observers so called. Raises RecipeError with the nearest names for an unknown one."""
    return Collector({key: _observer(key)() for key in observers}, name)


def _observer(key: str) -> Callable[[], Observer]:
    if key not in OBSERVERS:
        near = get_close_matches(key, OBSERVERS, n=3, cutoff=0.4) or OBSERVERS
        raise RecipeError(f"unknown observer {key!r}; did you mean {', '.join(near)}?")
    return OBSERVERS[key]


__all__ = ["OBSERVERS", "Collector", "HistogramObserver", "Observer", "collect"]
