"""The steps of ``haqsearch.spec.ptq``, done: a traced graph in, a graph to calibrate and a source of integer weights out.

``Pipeline`` is bound to one network. Its ``observe`` goes with the pass that measures ranges, so that one pass over the
calibration inputs yields every statistic the steps want; ``weight`` then needs no data.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from haqsearch.errors import DataError, ModelError
from haqsearch.graph import Graph, Node, run_float
from haqsearch.ptq.adaround import adaround_weight
from haqsearch.ptq.bias_correct import InputMeans, Normal, corrected, expected_inputs, norm_outputs
from haqsearch.ptq.equalize import equalizing_scales, rescaled
from haqsearch.ptq.fold import prepare
from haqsearch.ptq.reconstruct import VERSION, InputStatistics, StatisticsCollector, reconstruct_weight
from haqsearch.quant import QWeight, quantize_weight, round_stochastic
from haqsearch.quant.weights import encode_weight
from haqsearch.spec import Format
from haqsearch.spec.ptq import PTQ_STEPS

RECONSTRUCTIONS: Mapping[str, Callable[..., QWeight]] = {"reconstruct": reconstruct_weight, "adaround": adaround_weight}
"""Ways of rounding that look at the layer's inputs: (weight, format, statistics, where, has_bias) -> QWeight."""


class Pipeline:
    """``steps`` (as ``ptq_steps`` gives them) on the network ``traced``; ``graph`` is what its graph steps make of it.

    Raises ModelError for ``bias_correct_norms`` on a network whose layers have no batch norms to take statistics from.
    """

    def __init__(self, traced: Graph, steps: Sequence[str]) -> None:
        self.steps = tuple(steps)
        self.graph, norms = prepare(traced), norm_outputs(traced)
        if "equalize" in steps:
            scales = equalizing_scales(self.graph)
            self.graph = rescaled(self.graph, scales)
            for layer in norms.keys() & scales.keys():
                norms[layer] = Normal(norms[layer].mean / scales[layer], norms[layer].std / scales[layer])
        self.nodes = {node.layer: node for node in self.graph.layers}
        self.rounding = next(name for name in steps if PTQ_STEPS[name].stage == "rounding")
        self.wants = {PTQ_STEPS[name].wants for name in steps} - {"", "inputs"}
        if self.rounding in RECONSTRUCTIONS:
            self.wants -= {"mean"}  # the covariance comes with it
        self._means, self._covariance = InputMeans(self.graph), StatisticsCollector(self.graph)
        self._collectors = [
            each for name, each in (("mean", self._means), ("covariance", self._covariance)) if name in self.wants
        ]
        self._fed = False
        self._analytic = expected_inputs(self.graph, norms) if "norms" in self.wants else {}
        if "norms" in self.wants and not self._analytic:
            raise ModelError(
                f"{traced.name}: bias_correct_norms finds no batch norms (folded already?); with data write bias_correct"
            )

    @property
    def is_slow(self) -> bool:
        """Whether rounding takes long enough to keep its weights on disk."""
        return self.rounding in RECONSTRUCTIONS

    @property
    def version(self) -> str:
        """Names the method that made kept weights: those of another one are made again."""
        usual = self.rounding == "reconstruct" and "bias_correct" in self.steps
        return str(VERSION) if usual else f"{VERSION} {self.rounding} {'bias_correct' in self.steps}"

    @property
    def needs_data(self) -> bool:
        """Whether a step wants statistics that have not been collected."""
        return bool(self._collectors) and not self._fed

    def observe(self, node: Node, value: Any) -> None:
        """Sees every value of one float pass over the calibration inputs, and collects what the steps want."""
        self._fed = True
        for collector in self._collectors:
            collector(node, value)

    def collect(self, batches: Iterable[Tensor]) -> None:
        """That pass."""
        with torch.no_grad():
            for batch in batches:
                run_float(self.graph, batch, self.observe)

    @cached_property
    def means(self) -> Mapping[str, Tensor]:
        """Mean input (G, K) of layers, from data or from batch norms; empty if no step wants it."""
        return self._means.means() if "mean" in self.wants else self._analytic

    @cached_property
    def statistics(self) -> Mapping[str, InputStatistics]:
        """Of each layer's input."""
        return self._covariance.statistics()

    def weight(self, layer: str, format: Format) -> QWeight:
        """Integer weights of ``layer`` in ``format``, its bias corrected if a step says so.

        Raises DataError if the weights are not finite, or if statistics that a step wants have not been collected.
        """
        if self.needs_data:
            raise DataError(
                f"{self.graph.name}: {self.rounding} and bias_correct need calibration data; call collect first"
            )
        node = self.nodes[layer]
        weight, where = self.graph.parameters[node.weight], f"layer {layer}"
        if self.rounding in RECONSTRUCTIONS:
            corrects = bool(node.bias) and "bias_correct" in self.steps
            return RECONSTRUCTIONS[self.rounding](weight, format, self.statistics[layer], where, corrects)
        rounded = quantize_weight(weight, format, where)
        if self.rounding == "stochastic" and not format.is_decoded:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{layer} {format}".encode()))
            rounded = encode_weight(weight, rounded.scale, format, lambda x: round_stochastic(x, generator))
        if node.bias and layer in self.means:
            rounded = corrected(weight, rounded, self.means[layer])
        return rounded
