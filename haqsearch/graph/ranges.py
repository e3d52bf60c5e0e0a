"""One float pass over calibration data that yields the range of every value at every format."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from haqsearch.calibrate import HistogramObserver
from haqsearch.errors import DataError
from haqsearch.graph.execute import run_float
from haqsearch.graph.ir import MOVES, Graph, Node
from haqsearch.graph.plan import OUTPUT, make_plan
from haqsearch.quant import QParams, affine_params
from haqsearch.spec import Format

_OUTPUT_HEADROOM = 2.0  # unseen inputs give larger logits than the calibration images did; 16 bits leave room


class CalibratedRanges:
    """Ranges from histograms; ``params`` is cached, since a search asks for the same few thousands of times."""

    def __init__(self, observers: dict[str, HistogramObserver]) -> None:
        self.observers = observers
        self._cache: dict[tuple[str, Format], QParams] = {}

    def params(self, value: str, format: Format) -> QParams:
        """Least-squared-error quantization of ``value`` (an arithmetic node); the output keeps twice its range."""
        key = (value, format)
        if key not in self._cache:
            observer = self.observers[value]
            if format == OUTPUT:
                limit = _OUTPUT_HEADROOM * max(abs(observer.minimum), abs(observer.maximum))
                self._cache[key] = affine_params(-limit, limit, format)
            else:
                self._cache[key] = observer.mse(format)
        return self._cache[key]


def calibrate(graph: Graph, batches: Iterable[Tensor]) -> CalibratedRanges:
    """Observe every value that is quantized anywhere, in one pass. Raises DataError on NaN, infinity or no data."""
    slots = make_plan(graph).slots
    observers = {n.name: HistogramObserver(n.name) for n in graph.nodes if n.op not in MOVES and set(slots[n.name]) - {"float"}}

    def observe(node: Node, value: Tensor) -> None:
        if node.name in observers:
            observers[node.name].update(value)

    seen = 0
    with torch.no_grad():
        for batch in batches:
            run_float(graph, batch, observe)
            seen += len(batch)
    if not seen:
        raise DataError(f"{graph.name}: the calibration split is empty")
    return CalibratedRanges(observers)
