"""Observers: what a calibration pass remembers of a tensor, and the ranges that follow from it."""

from haqsearch.calibrate.histogram import HistogramObserver

__all__ = ["HistogramObserver"]
