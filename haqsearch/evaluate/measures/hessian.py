"""Curvature of the loss times the squared error of quantization: HAWQ-V2 [Dong et al. 2020, 1911.03852].

Near its minimum the loss rises by half of d'Hd where the weights of a layer move by d. HAWQ-V2 takes for the layer's Hessian H
its mean eigenvalue Tr(H) / n (equation 2.11: Tr(H) / n * ||Q(W) - W||**2; here with the half, so that it is in nats) and
estimates the trace by Hutchinson's method, E[v'Mv] = Tr(M) for vectors v of independent signs. The loss is the cross-entropy on
calibration samples, the network the float one with its batch norms folded. Bias corrections count as nothing.

Activations likewise, as in HAWQ-V2's section on them: H is then that of one sample's loss by the values that layers read (not by
their copy in the residual stream, which the policy leaves alone); trace and squared error are means over the samples.

Hutchinson's vectors are signs of the logits here, not of the weights. From the weights of one layer to the logits a network of
ReLUs, convolutions, sums and pools is piecewise linear, with a Jacobian J; so H is J'AJ with A = diag(p) - pp' = BB' of the
softmax p, and Tr(H) = Tr(B'JJ'B) = E||J'Bv||**2. The labels do not enter. One backward pass with Bv at the logits gives the
estimates of all layers at once, and none is ever negative. (Products Hv with signs of all weights at once hold what layers do to
each other: of ResNet-20's 40 traces 6 came out negative after 64 draws. A layer at a time, each costs passes of its own.)
Where an activation function is curved, J'AJ is the Gauss-Newton part of H [Schraudolph 2002], without what makes H indefinite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.evaluate.measures.base import Measure
from haqsearch.graph import Graph, Node, run_float
from haqsearch.graph.execute import call_float, compute
from haqsearch.graph.ir import MOVES
from haqsearch.graph.plan import Plan
from haqsearch.spec import Variable


class Hessian(Measure):
    """In nats of the cross-entropy. Raises ModelError for a network that autograd cannot differentiate."""

    name: ClassVar[str] = "hessian"
    samples: ClassVar[int] = 1024
    draws: ClassVar[int] = 4  # of signs, for each batch

    def figures(self, number: int, inputs: Tensor, labels: Tensor) -> dict[str, list[float]]:
        generator = torch.Generator().manual_seed(number)
        vectors = (_signs(len(inputs), generator) for _ in range(self.draws))
        traces = hessian_traces(self.graph, self.prepared.plan, inputs, vectors)
        values = {self.value_of(v).name: v for v in self.space.variables if v.role == "activation"}
        found = {v.name: [traces[self.nodes[v.layers[0]].weight]] for v in self.space.variables if v.role == "weight"}

        def observe(node: Node, x: Any) -> None:
            if node.name in values:
                changes = (self.narrowed(node, x, format) - x for format in values[node.name].candidates)
                squares = [float(change.square().sum()) / len(x) for change in changes]
                found[values[node.name].name] = [traces[node.name], *squares]

        with torch.no_grad():
            run_float(self.graph, inputs, observe)
        return found

    def errors(self, variable: Variable, means: Sequence[float]) -> list[float]:
        trace, *squares = means
        if variable.role == "weight":
            changes = [self.weight_change(variable.layers[0], format) for format in variable.candidates]
            squares, size = [float(change.square().sum()) for change in changes], changes[0].numel()
        else:
            size = torch.Size(self.value_of(variable).shape or ()).numel()
        return [trace / size * square / 2 for square in squares]


def _signs(count: int, generator: torch.Generator) -> Callable[[int], Tensor]:
    return lambda classes: torch.randint(0, 2, (count, classes), generator=generator).float().mul_(2).sub_(1)


def hessian_traces(
    graph: Graph, plan: Plan, inputs: Tensor, draws: Iterable[Callable[[int], Tensor]]
) -> dict[str, float]:
    """Tr(H) of the mean cross-entropy over ``inputs`` (B, ...), by key of each layer's weights, and by value that layers read.

    Of values it is the mean over the samples of each one's. Estimated as the mean over ``draws``: of a number of classes, each
    gives signs (B, classes). Raises ModelError for a network that cannot be differentiated, or gives no logits.
    """
    weights = {node.weight: graph.parameters[node.weight].detach().clone() for node in graph.layers}
    taps = {name: torch.zeros(len(inputs), *graph[name].shape or ()) for name in plan.owner}
    leaves = {**weights, **taps}
    for leaf in leaves.values():
        leaf.requires_grad_()
    forms: list[list[float]] = []
    try:
        with torch.enable_grad():
            logits = _logits(graph, plan, inputs, {**graph.parameters, **weights}, taps)
        if logits.ndim != 2:
            raise ModelError(
                f"the network gives {tuple(logits.shape[1:])} per sample; logits, one per class, have a loss"
            )
        p = logits.detach().softmax(1)
        root = p.sqrt()
        for draw in draws:
            v = draw(logits.shape[1])
            slope = root * v - p * (root * v).sum(1, keepdim=True)  # Bv
            slopes = torch.autograd.grad(
                logits, list(leaves.values()), slope, retain_graph=True, materialize_grads=True
            )
            forms.append([float(g.square().sum(dtype=torch.float64)) / len(inputs) for g in slopes])
    except RuntimeError as error:
        raise ModelError(
            f"{graph.name}: autograd cannot differentiate it ({str(error).splitlines()[0]}); choose another "
            "measure of sensitivity"
        ) from error
    return dict(zip(leaves, (sum(column) / len(forms) for column in zip(*forms, strict=True)), strict=True))


def _logits(
    graph: Graph, plan: Plan, x: Tensor, parameters: Mapping[str, Tensor], taps: Mapping[str, Tensor]
) -> Tensor:
    """As ``run_float``, with ``taps`` added to the copies of values that layers read."""
    values: dict[str, dict[str, Any]] = {}
    for node in graph.nodes:
        slots = plan.slots[node.name]
        if node.op in MOVES:
            source = values[node.inputs[0]]
            values[node.name] = {slot: compute(node, [source[slot]]) for slot in slots}
            continue
        inputs = {name: values[name][plan.slot(node, name)] for name in node.inputs}
        if node.op == "input":
            value: Any = x
        elif node.op == "float":
            value = call_float(node, inputs, parameters)
        else:
            weight, bias = (parameters[key] if key else None for key in (node.weight, node.bias))
            value = compute(node, [inputs[name] for name in node.inputs], weight, bias)
        values[node.name] = {slot: value + taps[node.name] if slot == "layers" else value for slot in slots}
    result: Tensor = values[graph.output][plan.slots[graph.output][-1]]
    return result
