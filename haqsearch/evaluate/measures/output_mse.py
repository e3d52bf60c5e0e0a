"""How far each layer's own output moves: the mean squared change, for float inputs.

Of weights, E[((W_q - W) x + c)**2], with c the bias correction that goes with W_q: what their rounding was chosen by, see
``ptq/reconstruct.py``. Of activations, E[(W (q(x) - x))**2], summed over the layers that read the value. Means are over
calibration samples, positions and channels, before the activation that is fused behind the layer. It costs a few float passes,
and does not know what the rest of the network makes of a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from haqsearch.evaluate.measures.base import Measure
from haqsearch.graph import Node, run_float
from haqsearch.graph.execute import compute
from haqsearch.spec import Format, Variable


class OutputMse(Measure):
    """In squared units of the layers' outputs."""

    name: ClassVar[str] = "output_mse"

    def figures(self, number: int, inputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}

        def observe(node: Node, x: Any) -> None:
            for variable, layer in self._weights.get(node.name, ()):
                found[variable.name] = [self._of_weight(layer, x, format) for format in variable.candidates]
            for variable in self._activations.get(node.name, ()):
                found[variable.name] = [self._of_activation(node, x, format) for format in variable.candidates]

        with torch.no_grad():
            run_float(self.graph, inputs, observe)
        return found

    def errors(self, variable: Variable, means: Sequence[float]) -> list[float]:
        return list(means)

    def _of_weight(self, layer: Node, x: Tensor, format: Format) -> float:
        correction = self.prepared.weight(layer.layer, format).bias_correction
        change = compute(layer.with_attributes(clamp=None), [x], self.weight_change(layer.layer, format), correction)
        return float(change.square().mean())

    def _of_activation(self, node: Node, x: Tensor, format: Format) -> float:
        narrow, total = self.narrowed(node, x, format), 0.0
        for *moves, layer in self._paths[node.name]:
            before, after = x, narrow
            for move in moves:
                before, after = compute(move, [before]), compute(move, [after])
            weight = self.graph.parameters[layer.weight]
            total += float(compute(layer.with_attributes(clamp=None), [after - before], weight).square().mean())
        return total

    # -- who is to be looked at when a node's value is seen ---------------------------------------------------------

    @cached_property
    def _weights(self) -> dict[str, list[tuple[Variable, Node]]]:
        found: dict[str, list[tuple[Variable, Node]]] = {}
        for variable in self.space.variables:
            if variable.role == "weight":
                layer = self.nodes[variable.layers[0]]
                found.setdefault(layer.inputs[0], []).append((variable, layer))
        return found

    @cached_property
    def _activations(self) -> dict[str, list[Variable]]:
        found: dict[str, list[Variable]] = {}
        for variable in self.space.variables:
            if variable.role == "activation":
                found.setdefault(self.value_of(variable).name, []).append(variable)
        return found

    @cached_property
    def _paths(self) -> dict[str, list[list[Node]]]:
        """By value, the nodes that lead from it into each layer that reads it, the layer the last."""
        found: dict[str, list[list[Node]]] = {}
        for layer in self.graph.layers:
            path = [layer]
            source = self.graph.source(layer.inputs[0]).name
            while path[0].inputs[0] != source:
                path.insert(0, self.graph[path[0].inputs[0]])
            found.setdefault(source, []).append(path)
        return found
