"""What is done once before any policy is scored: trace, fold, calibrate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from torch import Tensor, nn

from haqsearch.data import Splits
from haqsearch.evaluate.metrics import in_batches
from haqsearch.evaluate.weights import WeightBank
from haqsearch.graph import Graph, model_spec, trace
from haqsearch.graph.plan import Plan, make_plan
from haqsearch.graph.ranges import CalibratedRanges, calibrate
from haqsearch.ptq.activation_ranges import OutputErrorFactors
from haqsearch.ptq.balance import balancing_scales
from haqsearch.ptq.equalize import Scales, rescaled
from haqsearch.ptq.pipeline import Pipeline
from haqsearch.ptq.sequential import FloatOutputs, reconstruct_in_order
from haqsearch.qat import Finetuned
from haqsearch.quant import QWeight
from haqsearch.runtime import IntegerProgram, lower, run_program
from haqsearch.runtime.pieces import Memo
from haqsearch.spec import Format, ModelSpec, Policy
from haqsearch.spec.ptq import PTQ_PRESETS

_BATCH = 128
_MAKING = Lock()


@dataclass(frozen=True)
class Prepared:
    """A network ready to be lowered under any policy. ``weight`` gives a layer's integer weights in a format, made once."""

    graph: Graph
    spec: ModelSpec
    plan: Plan
    ranges: CalibratedRanges
    weight: Callable[[str, Format], QWeight]
    memo: Memo = field(default_factory=Memo, repr=False, compare=False)
    _quick: list[FloatOutputs] = field(default_factory=list, repr=False, compare=False)

    def lower(self, policy: Policy) -> IntegerProgram:
        """Integer program of ``policy``; a changed layer re-quantizes only itself."""
        return lower(self.graph, policy, self.ranges, self.weight, self.plan, self.memo)

    def in_order(self, policy: Policy, inputs: Tensor, quick: bool = False, balance: bool = True) -> Prepared:
        """The same network with the weights of ``policy`` reconstructed in network order from ``inputs`` (N, ...).

        Unless ``quick``, with the channels of narrow activations ``balanced_in_order`` where that helps, if ``balance``.
        """
        if quick:
            return self.rounded_in_order(policy, self._float_outputs(inputs))
        wanted = FloatOutputs(self.graph, inputs)
        rounded = self.rounded_in_order(policy, wanted)
        return self.balanced_in_order(policy, rounded, wanted) if balance else rounded

    def rounded_in_order(self, policy: Policy, wanted: FloatOutputs) -> Prepared:
        """The same network with the weights of ``policy`` reconstructed from what ``wanted`` keeps of its float outputs."""
        weights = reconstruct_in_order(self.plan, policy, self.ranges, wanted)
        return replace(self, weight=lambda layer, _: weights[layer], memo=Memo())

    def balanced_in_order(self, policy: Policy, rounded: Prepared, wanted: FloatOutputs) -> Prepared:
        """``rounded``, which is this network ``rounded_in_order`` from ``wanted``, or the same with the channels of narrow
        activations balanced first, which is another graph of the same function: the one whose outputs are nearer to float's.
        """
        scales = balancing_scales(self.graph, policy, wanted.batches)
        if not scales:
            return rounded
        other = self._balanced(policy, scales, wanted.inputs)
        balanced = other.rounded_in_order(policy, wanted.rescaled(other.graph, scales))
        return min(rounded, balanced, key=lambda one: one._change(policy, wanted))

    def _float_outputs(self, inputs: Tensor) -> FloatOutputs:
        """Quick ones, and kept: for the many policies of a search, in several threads."""
        with _MAKING:
            kept = self._quick[0] if self._quick else None
            if kept is None or kept.graph is not self.graph or kept.inputs is not inputs:
                self._quick[:] = [kept := FloatOutputs(self.graph, inputs, quick=True)]
            return kept

    def _change(self, policy: Policy, wanted: FloatOutputs) -> float:
        """Mean squared difference of the integer program's outputs and the float network's, on the inputs of ``wanted``."""
        program = self.lower(policy)
        outputs = in_batches(lambda x: run_program(program, x), wanted.inputs)
        return float((outputs - wanted.output).double().square().mean())

    def _balanced(self, policy: Policy, scales: Scales, inputs: Tensor) -> Prepared:
        """The network with layers' output channels divided by ``scales``, and ranges anew of the values that this changes."""
        graph, before = rescaled(self.graph, scales), self.ranges
        changed = {node.name for node in graph.layers if node.layer in scales}
        observed = calibrate(graph, inputs.split(_BATCH), values=changed)
        ranges = CalibratedRanges(observed.plan, {**before.observers, **observed.observers})
        factor = ranges.factor
        if isinstance(before.source, OutputErrorFactors):
            formats = {value: policy[ranges.plan.owner[value]].activation for value in changed}
            factor = OutputErrorFactors(graph, ranges, inputs, formats=formats)
        ranges = ranges.chosen_by(lambda value, format: (factor if value in changed else before.factor)(value, format))
        return replace(self, graph=graph, plan=ranges.plan, ranges=ranges)

    def finetuned(self, tuned: Finetuned) -> Prepared:
        """The same network as training left it: other parameters, their integer weights, moved activation scales."""
        ranges = self.ranges.scaled(tuned.factors)
        plan = make_plan(tuned.graph)
        weights = tuned.weights
        return replace(
            self, graph=tuned.graph, plan=plan, ranges=ranges, weight=lambda layer, _: weights[layer], memo=Memo()
        )


def prepare_network(
    model: nn.Module,
    splits: Splits,
    name: str,
    steps: Sequence[str] = PTQ_PRESETS["plain"],
    folder: Path | None = None,
) -> Prepared:
    """Trace ``model``, do the graph ``steps`` (of ``haqsearch.spec.ptq``), and calibrate on the calibrate split, in one pass.

    Errors as of ``trace``, ``calibrate`` and ``Pipeline``. ``folder`` as of ``WeightBank``. Where weights are kept there, or
    where ``in_order`` makes those of the chosen policies, statistics for rounding are collected when first asked for.
    """
    inputs = splits.calibrate[0]
    pipeline = Pipeline(trace(model, inputs[:2], name), steps)
    graph = pipeline.graph
    bank = WeightBank(pipeline, inputs, folder)
    later = bank.made or "in_order" in steps
    ranges = calibrate(graph, inputs.split(_BATCH), *([] if later else [pipeline.observe]))
    if "output_ranges" in steps:
        ranges = ranges.chosen_by(OutputErrorFactors(graph, ranges, inputs, bank.folder))
    return Prepared(graph, model_spec(graph), make_plan(graph), ranges, bank)
