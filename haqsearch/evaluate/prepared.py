"""What is done once before any policy is scored: trace, fold, calibrate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from haqsearch.data import Splits
from haqsearch.graph import Graph, model_spec, trace
from haqsearch.graph.plan import Plan, make_plan
from haqsearch.graph.ranges import CalibratedRanges, calibrate
from haqsearch.ptq import prepare
from haqsearch.qat import Finetuned
from haqsearch.quant import QWeight, quantize_weight
from haqsearch.runtime import IntegerProgram, lower
from haqsearch.spec import Format, ModelSpec, Policy

_BATCH = 128


@dataclass
class Prepared:
    """A network ready to be lowered under any policy. Weights are quantized once per (layer, format)."""

    graph: Graph
    spec: ModelSpec
    plan: Plan
    ranges: CalibratedRanges
    _weights: dict[tuple[str, Format], QWeight] = field(default_factory=dict, repr=False)

    def weight(self, layer: str, format: Format) -> QWeight:
        """Integer weights of ``layer`` in ``format``: nearest rounding at the per-channel scale of least squared error."""
        key = (layer, format)
        if key not in self._weights:
            node = next(node for node in self.graph.layers if node.layer == layer)
            self._weights[key] = quantize_weight(self.graph.parameters[node.weight], format, f"layer {layer}")
        return self._weights[key]

    def lower(self, policy: Policy) -> IntegerProgram:
        """Integer program of ``policy``; a changed layer re-quantizes only itself."""
        return lower(self.graph, policy, self.ranges, self.weight, self.plan)

    def finetuned(self, tuned: Finetuned) -> Prepared:
        """The same network as training left it: other parameters, their integer weights, moved activation scales."""
        weights = {(layer, weight.format): weight for layer, weight in tuned.weights.items()}
        ranges = self.ranges.scaled(tuned.factors)
        return replace(self, graph=tuned.graph, plan=make_plan(tuned.graph), ranges=ranges, _weights=weights)


def prepare_network(model: nn.Module, splits: Splits, name: str) -> Prepared:
    """Trace ``model``, fold it, and calibrate on the calibrate split in one pass. Errors as of ``trace`` and ``calibrate``."""
    graph = prepare(trace(model, splits.calibrate[0][:2], name))
    spec = model_spec(graph)
    return Prepared(graph, spec, make_plan(graph), calibrate(graph, splits.calibrate[0].split(_BATCH)))
