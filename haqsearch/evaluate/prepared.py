"""What is done once before any policy is scored: trace, fold, calibrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from haqsearch.data import Splits
from haqsearch.evaluate.weights import WeightBank
from haqsearch.graph import Graph, model_spec, trace
from haqsearch.graph.plan import Plan, make_plan
from haqsearch.graph.ranges import CalibratedRanges, calibrate
from haqsearch.ptq import prepare
from haqsearch.ptq.sequential import reconstruct_in_order
from haqsearch.qat import Finetuned
from haqsearch.quant import QWeight
from haqsearch.runtime import IntegerProgram, lower
from haqsearch.spec import Format, ModelSpec, Policy

_BATCH = 128


@dataclass(frozen=True)
class Prepared:
    """A network ready to be lowered under any policy. ``weight`` gives a layer's integer weights in a format, made once."""

    graph: Graph
    spec: ModelSpec
    plan: Plan
    ranges: CalibratedRanges
    weight: Callable[[str, Format], QWeight]

    def lower(self, policy: Policy) -> IntegerProgram:
        """Integer program of ``policy``; a changed layer re-quantizes only itself."""
        return lower(self.graph, policy, self.ranges, self.weight, self.plan)

    def in_order(self, policy: Policy, inputs: Tensor) -> Prepared:
        """The same network with the weights of ``policy`` reconstructed in network order from ``inputs`` (N, ...)."""
        weights = reconstruct_in_order(self.graph, self.plan, policy, self.ranges, inputs)
        return replace(self, weight=lambda layer, _: weights[layer])

    def finetuned(self, tuned: Finetuned) -> Prepared:
        """The same network as training left it: other parameters, their integer weights, moved activation scales."""
        ranges = self.ranges.scaled(tuned.factors)
        plan = make_plan(tuned.graph)
        return replace(self, graph=tuned.graph, plan=plan, ranges=ranges, weight=lambda layer, _: tuned.weights[layer])


def prepare_network(
    model: nn.Module, splits: Splits, name: str, preset: str = "plain", folder: Path | None = None
) -> Prepared:
    """Trace ``model``, fold it, and calibrate on the calibrate split in one pass. Errors as of ``trace`` and ``calibrate``.

    ``preset`` and ``folder`` as of ``WeightBank``.
    """
    inputs = splits.calibrate[0]
    graph = prepare(trace(model, inputs[:2], name))
    spec = model_spec(graph)
    ranges = calibrate(graph, inputs.split(_BATCH))
    return Prepared(graph, spec, make_plan(graph), ranges, WeightBank(graph, preset, inputs, folder))
