"""One float pass over calibration data that yields the scale of every value at every format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from threading import RLock

import torch
from torch import Tensor

from haqsearch.calibrate import HistogramObserver
from haqsearch.errors import DataError
from haqsearch.graph.execute import run_float
from haqsearch.graph.ir import MOVES, Graph, Node
from haqsearch.graph.plan import OUTPUT, STREAM, Plan, make_plan
from haqsearch.quant import QParams, affine_params
from haqsearch.quant.ties import odd_multiple
from haqsearch.spec import Format

_OUTPUT_HEADROOM = 2.0  # unseen inputs give larger logits than the calibration images did; 16 bits leave room
_STEPS = 128  # a scale may be off the calibrated one by half a step of this many


class CalibratedRanges:
    """Scales from histograms, placed so that no requantization meets a tie (``quant/ties.py``).

    Values that are added, concatenated or clamped have scales that are odd multiples of one unit of the network; a value
    kept both in the residual stream and in a narrower format has scales in an odd ratio; so has a pool with its input.
    Convolutions and linear layers need nothing here: lowering adjusts their weight scales. ``params`` is cached, since a
    search asks for the same few thousands of times, and may be asked by several threads.
    """

    def __init__(
        self,
        plan: Plan,
        observers: dict[str, HistogramObserver],
        factors: Mapping[tuple[str, Format], float] | None = None,
        source: Callable[[str, Format], float] = lambda value, format: 1.0,
    ) -> None:
        self.plan, self.observers, self.factors, self.source = plan, observers, dict(factors or {}), source
        self._cache: dict[tuple[str, Format], QParams] = {}
        self._making = RLock()
        self._least: dict[tuple[str, Format], QParams] = {}
        streams = [
            observers[name].mse(STREAM).scale
            for name, slots in plan.slots.items()
            if "stream" in slots and name in observers
        ]
        self.unit = min(streams, default=1.0) / _STEPS

    def params(self, value: str, format: Format) -> QParams:
        """Quantization of ``value`` (an arithmetic node): ``factor`` times the scale of least squared error."""
        key = (value, format)
        if key not in self._cache:
            with self._making:
                self._cache[key] = self.placed(value, format, self.factor(value, format))
        return self._cache[key]

    def factor(self, value: str, format: Format) -> float:
        """What the scale of least squared error is multiplied by: what was set, or else what ``source`` says."""
        if (value, format) in self.factors:
            return self.factors[value, format]
        with self._making:
            return self.source(value, format)

    def scaled(self, factors: Mapping[tuple[str, Format], float]) -> CalibratedRanges:
        """The same ranges with the scales of some (value, format) multiplied by a factor (learned in training)."""
        moved = {key: self.factor(*key) * factor for key, factor in factors.items()}
        return CalibratedRanges(self.plan, self.observers, {**self.factors, **moved}, self.source)

    def chosen_by(self, source: Callable[[str, Format], float]) -> CalibratedRanges:
        """The same ranges with factors from ``source``, asked once for each (value, format) that is used."""
        return CalibratedRanges(self.plan, self.observers, self.factors, source)

    def placed(self, value: str, format: Format, factor: float = 1.0) -> QParams:
        """Quantization of ``value`` at ``factor`` times the scale of least squared error, but for what keeps ties away.

        The output keeps twice its range, whatever the factor.
        """
        observer = self.observers[value]
        if format == OUTPUT:
            limit = _OUTPUT_HEADROOM * max(abs(observer.minimum), abs(observer.maximum))
            return affine_params(-limit, limit, format)
        if (value, format) not in self._least:
            self._least[value, format] = observer.mse(format)
        best = self._least[value, format]
        if factor != 1.0:
            best = _rescaled(best, best.scale * factor)
        node = self.plan.graph[value]
        if "stream" in self.plan.slots[value]:
            unit = self.unit if format == STREAM else self.params(value, STREAM).scale / _STEPS
        elif node.op in {"add", "concat", "clamp"}:
            unit = self.unit
        elif node.op == "avg_pool2d":
            window = node.attributes["kernel"][0] * node.attributes["kernel"][1]
            source = self.plan.graph.source(node.inputs[0]).name
            unit = self.params(source, STREAM).scale / (window * _STEPS)
        else:
            return best
        return _rescaled(best, odd_multiple(best.scale, unit))


def _rescaled(params: QParams, scale: float) -> QParams:
    """``params`` with another scale; the zero point follows where there is one."""
    if params.zero_point == 0:
        return replace(params, scale=scale)
    format = params.format
    low = -params.zero_point * params.scale
    return QParams(format, scale, min(max(round(-low / scale), format.code_min), format.code_max))


def calibrate(
    graph: Graph,
    batches: Iterable[Tensor],
    *others: Callable[[Node, Tensor], None],
    values: Collection[str] | None = None,
) -> CalibratedRanges:
    """Observe every value that is quantized anywhere, in one pass. Raises DataError on NaN, infinity or no data.

    ``others`` are called with every node and its value in the same pass. ``values``: names of those to be observed; None: all.
    """
    plan = make_plan(graph)
    observers = {
        n.name: HistogramObserver(n.name)
        for n in graph.nodes
        if n.op not in MOVES and set(plan.slots[n.name]) - {"float"} and (values is None or n.name in values)
    }

    def observe(node: Node, value: Tensor) -> None:
        if node.name in observers:
            observers[node.name].update(value)
        for other in others:
            other(node, value)

    seen = 0
    with torch.no_grad():
        for batch in batches:
            run_float(graph, batch, observe)
            seen += len(batch)
    if not seen:
        raise DataError(f"{graph.name}: the calibration split is empty")
    return CalibratedRanges(plan, observers)
