"""(Graph, Policy, ranges, weights) -> a copy that computes what the integer program computes, in float, and can be trained.

The straight-through estimator [Bengio et al. 2013; Jacob et al. 2018, section 3]: rounding passes gradients unchanged, clamping
passes them inside the range only. A full-precision copy of the weights is what the optimizer moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from haqsearch.graph.execute import call_float, compute
from haqsearch.graph.ir import LAYER_OPS, MOVES, Graph, Node
from haqsearch.graph.plan import STREAM, Plan, make_plan
from haqsearch.quant import QParams, QWeight
from haqsearch.spec import Format, Policy


def round_through(x: Tensor) -> Tensor:
    """round(x), half to even; its gradient is that of x."""
    return x + (torch.round(x) - x).detach()


def fake_quantize(x: Tensor, params: QParams, factor: Tensor | None = None) -> Tensor:
    """Nearest value of ``x`` (any shape) that ``params`` can represent; gradient 1 inside the range, 0 outside.

    ``factor`` multiplies the scale and gets the gradient of LSQ [Esser et al. 2019, eq. 3], times the scale.
    """
    scale = params.scale if factor is None else params.scale * factor
    if not torch.is_grad_enabled():  # the same in half the passes over memory
        low, high = params.format.code_min - params.zero_point, params.format.code_max - params.zero_point
        return (x / scale).round_().clamp_(low, high).mul_(scale)
    codes = round_through(x / scale) + params.zero_point
    return (codes.clamp(params.format.code_min, params.format.code_max) - params.zero_point) * scale


def _start(graph: Graph, node: Node, weight: QWeight) -> dict[str, Tensor]:
    """Parameters that quantize to exactly ``weight``, each weight as near to the float network's as that allows."""
    scale = weight.scale.reshape(-1, *[1] * (weight.codes.ndim - 1))
    low, high = weight.grid.cells(weight.codes)
    start = {node.weight: torch.clamp(graph.parameters[node.weight] / scale, low, high) * scale}
    if node.bias:
        correction = 0.0 if weight.bias_correction is None else weight.bias_correction
        start[node.bias] = graph.parameters[node.bias] + correction
    return start


class QuantizedNetwork(nn.Module):
    """A trainable, fake-quantized copy of a graph under a policy, with the quantizers where the integer program has them.

    ``weights`` gives each layer's weight scales, steps and codebook; they stay, the weights move. The scales of the layers' input
    activations move too, where they are narrower than the residual stream. ``forward`` takes (B, *input shape).
    """

    def __init__(
        self, graph: Graph, policy: Policy, ranges: Any, weights: Mapping[str, QWeight], plan: Plan | None = None
    ) -> None:
        super().__init__()
        self.graph, self.policy, self.ranges, self.plan = graph, policy, ranges, plan or make_plan(graph)
        self.trained = nn.ParameterDict()
        self._keys: dict[str, str] = {}
        for node in graph.layers:
            for key, tensor in _start(graph, node, weights[node.layer]).items():
                self._keys[key] = key.replace(".", "/")  # ParameterDict keys must not hold dots
                self.trained[self._keys[key]] = nn.Parameter(tensor)
        self.scales = {
            node.layer: weights[node.layer].scale.reshape(-1, *[1] * (graph.parameters[node.weight].ndim - 1))
            for node in graph.layers
        }
        self.log_factors = nn.ParameterDict()
        for value in self.plan.owner:
            if self.plan.format(value, "layers", policy).width < STREAM.width:
                self.log_factors[value] = nn.Parameter(torch.zeros(()))
        self.grids = {node.layer: weights[node.layer].grid for node in graph.layers}

    def parameter(self, key: str) -> Tensor | None:
        if not key:
            return None
        return self.trained[self._keys[key]] if key in self._keys else self.graph.parameters[key]

    def trained_graph(self) -> Graph:
        """The graph with the weights as they are now."""
        moved = {key: self.trained[safe].detach().clone() for key, safe in self._keys.items()}
        return self.graph.replace(self.graph.nodes, {**self.graph.parameters, **moved})

    def trained_factors(self) -> dict[tuple[str, Format], float]:
        """What each learned activation scale is multiplied by, as ``CalibratedRanges.scaled`` takes it."""
        return {
            (value, self.plan.format(value, "layers", self.policy)): float(log.detach().exp())
            for value, log in self.log_factors.items()
        }

    def _weight(self, node: Node) -> Tensor | None:
        weight = self.parameter(node.weight)
        if weight is None or node.op not in LAYER_OPS:
            return weight
        scale = self.scales[node.layer]
        return self.grids[node.layer].through(weight / scale) * scale

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, dict[str, Any]] = {}
        for node in self.graph.nodes:
            slots = self.plan.slots[node.name]
            if node.op in MOVES:
                source = values[node.inputs[0]]
                values[node.name] = {slot: compute(node, [source[slot]]) for slot in slots}
                continue
            inputs = {name: values[name][self.plan.slot(node, name)] for name in node.inputs}
            if node.op == "input":
                value = x
            elif node.op == "float":
                value = call_float(node, inputs, self.graph.parameters)
            else:
                value = compute(
                    node, [inputs[name] for name in node.inputs], self._weight(node), self.parameter(node.bias)
                )
            stream = self._quantize(node, "stream", value) if "stream" in slots else value
            whole = (
                value if node.op in {"input", "float"} else stream
            )  # what is real is quantized to each format directly
            values[node.name] = {slot: self._quantize(node, slot, whole) for slot in slots if slot != "stream"}
            if "stream" in slots:
                values[node.name]["stream"] = stream
        slot = self.plan.slots[self.graph.output][-1]
        return values[self.graph.output][slot]

    def _quantize(self, node: Node, slot: str, value: Any) -> Any:
        format = self.plan.format(node.name, slot, self.policy)
        if format.is_float:
            return value
        log = self.log_factors[node.name] if slot == "layers" and node.name in self.log_factors else None
        return fake_quantize(value, self.ranges.params(node.name, format), None if log is None else log.exp())
