"""Bias correction [Nagel et al. 2019, 1906.04721, section 4.2]: what rounding takes from the mean of a layer's output.

Rounded weights W_q change the expected output by (W_q - W) E[x]. The mean input E[x] comes from calibration data (empirical:
``InputMeans``) or, where there is none, from what batch norms say of their outputs (analytic: ``expected_inputs``).

Both are had from one *mean image* of each value a layer reads: the mean over data is linear, so E[x] at the weights is the mean
over the output positions of the mean image's windows, zeros of the padding included, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.graph import Graph, Node
from haqsearch.graph.ir import LAYER_OPS
from haqsearch.quant import QWeight


def corrected(weight: Tensor, rounded: QWeight, mean: Tensor) -> QWeight:
    """``rounded`` with the correction of its bias; ``weight`` (N, ...) as it was, ``mean`` (G, K) the layer's mean input."""
    groups, size = mean.shape
    change = (weight.double() - rounded.dequantize().double()).reshape(groups, -1, size)
    return replace(rounded, bias_correction=torch.einsum("gnk,gk->gn", change, mean.double()).reshape(-1).float())


def mean_input(node: Node, weight: Tensor, image: Tensor) -> Tensor:
    """Mean input (G, K), float64, as in ``InputStatistics``, of a layer whose input has the mean ``image`` (*input shape)."""
    image = image.double()
    if node.op == "linear":
        return image.reshape(1, -1, image.shape[-1]).mean(1)
    at = node.attributes
    columns = F.unfold(image[None], tuple(weight.shape[2:]), at["dilation"], at["padding"], at["stride"])
    return columns[0].mean(1).reshape(at["groups"], -1)


class InputMeans:
    """Collects the mean image of every value that layers read; an ``observe`` of ``run_float``."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._read = {node.inputs[0] for node in graph.layers}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, node: Node, value: Any) -> None:
        if node.name in self._read:
            self._sums[node.name] = self._sums.get(node.name, 0.0) + value.double().sum(0)
            self._counts[node.name] = self._counts.get(node.name, 0) + len(value)

    def means(self) -> dict[str, Tensor]:
        """Mean input (G, K) of every layer, by name."""
        return {
            node.layer: mean_input(
                node,
                self.graph.parameters[node.weight],
                self._sums[node.inputs[0]] / self._counts[node.inputs[0]],
            )
            for node in self.graph.layers
        }


@dataclass(frozen=True)
class Normal:
    """Values of each channel: ``mean`` and ``std`` (C,), float64."""

    mean: Tensor
    std: Tensor

    def clamped(self, low: Any, high: Any) -> Normal:
        """Moments of clamp(x, low, high) for normal x [Nagel et al. 2019, appendix C]; bounds: None, numbers or (C,)."""
        a, b = (
            torch.as_tensor(default if bound is None else bound, dtype=torch.float64).expand_as(self.mean)
            for bound, default in ((low, -inf), (high, inf))
        )
        mean, std = self.mean, self.std.clamp(min=1e-30)
        below, above = (a - mean) / std, (b - mean) / std
        inside = torch.special.ndtr(above) - torch.special.ndtr(below)
        tails = [
            (torch.special.ndtr(below), torch.nan_to_num(a, neginf=0.0), _density(below)),
            (torch.special.ndtr(-above), torch.nan_to_num(b, posinf=0.0), _density(above)),
        ]
        (under, a, at_a), (over, b, at_b) = tails
        first = a * under + b * over + mean * inside + std * (at_a - at_b)
        second = a**2 * under + b**2 * over + (mean**2 + std**2) * inside
        second = second + std * ((mean + a) * at_a - (mean + b) * at_b)
        return Normal(first, (second - first**2).clamp(min=0).sqrt())


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x**2) / (2 * torch.pi) ** 0.5


def norm_outputs(traced: Graph) -> dict[str, Normal]:
    """What batch norms that follow a layer say of their output's channels: mean beta, deviation |gamma|; by the layer's name.

    ``traced`` is the graph before ``fold_batch_norms``.
    """
    found = {}
    for node in traced.nodes:
        before = traced[node.inputs[0]] if "affine" in node.attributes else None
        if before is None or before.op not in LAYER_OPS or len(traced.users[before.name]) != 1:
            continue
        gamma, beta = (_parameter(traced, argument) for argument in node.attributes["arguments"][1:3])
        channels = int(traced.parameters[before.weight].shape[0])
        ones = torch.ones(channels, dtype=torch.float64)
        found[before.layer] = Normal(ones * 0 if beta is None else beta, ones if gamma is None else gamma.abs())
    return found


def _parameter(graph: Graph, argument: Any) -> Tensor | None:
    return graph.parameters[argument["parameter"]].double() if isinstance(argument, dict) else None


def expected_inputs(graph: Graph, norms: Mapping[str, Normal]) -> dict[str, Tensor]:
    """Mean input (G, K) of the layers where ``norms`` (of ``norm_outputs``, rescaled as the layers were) tell it; without data.

    ``graph`` is prepared: norms folded, clamps fused. What batch norms say is carried on through clamps, adds (as of
    independent values), average pools, moves and layers without a norm. Nothing is known of the network's input, of float
    regions and of maxima, hence of what only follows from them.
    """
    known: dict[str, Normal] = {}
    found = {}
    for node in graph.nodes:
        sources = [known.get(name) for name in node.inputs]
        mean = None
        if node.op in LAYER_OPS and sources[0] is not None:
            shape = graph[node.inputs[0]].shape or ()
            image = sources[0].mean.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
            mean = found[node.layer] = mean_input(node, graph.parameters[node.weight], image)
        made = norms.get(node.layer) or _carried(graph, node, [s for s in sources if s is not None], mean)
        if made is not None and (node.op in LAYER_OPS or all(s is not None for s in sources)):
            low, high = node.attributes.get("clamp", (None, None))
            known[node.name] = made.clamped(low, high) if (low, high) != (None, None) else made
    return found


def _carried(graph: Graph, node: Node, sources: list[Normal], mean: Tensor | None) -> Normal | None:
    """The channels of ``node``'s value, before a fused clamp, from those of its inputs; None where nothing is known."""
    if len(sources) != len(node.inputs) or not sources:
        return None
    x, at = sources[0], node.attributes
    shape = graph[node.inputs[0]].shape or ()
    match node.op:
        case "conv2d" | "linear" if mean is not None:
            return _through_layer(graph, node, x, mean)
        case "add" if sources[0].mean.shape == sources[-1].mean.shape:
            return Normal(sources[0].mean + sources[1].mean, (sources[0].std ** 2 + sources[1].std ** 2).sqrt())
        case "concat" if at["dim"] == 1:
            return Normal(torch.cat([s.mean for s in sources]), torch.cat([s.std for s in sources]))
        case "clamp":
            return x.clamped(at["low"], at["high"])
        case "avg_pool2d" if at["padding"] == [0, 0]:
            return x
        case "slice" if at["dim"] > 1:
            return x
        case "slice":
            chosen = slice(at["start"], at["end"], at["step"])
            return Normal(x.mean[chosen], x.std[chosen])
        case "reshape" if len(node.shape or ()) == 1 or (node.shape or ())[:1] == shape[:1]:
            times = (node.shape or (0,))[0] // max(shape[0], 1)
            return Normal(x.mean.repeat_interleave(times), x.std.repeat_interleave(times))
    return None


def _through_layer(graph: Graph, node: Node, x: Normal, mean: Tensor) -> Normal | None:
    """A layer without a norm: the mean is exact, the deviation that of independent inputs."""
    weight = graph.parameters[node.weight].double()
    groups, size = mean.shape
    rows = weight.reshape(groups, -1, size)
    first = torch.einsum("gnk,gk->gn", rows, mean).reshape(-1)
    if node.bias:
        first = first + graph.parameters[node.bias].double()
    spread = x.std.reshape(groups, -1).repeat_interleave(size * groups // len(x.std), 1)
    return Normal(first, torch.einsum("gnk,gk->gn", rows**2, spread**2).reshape(-1).sqrt())
