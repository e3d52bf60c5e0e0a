"""Cross-layer equalization [Nagel et al. 2019, 1906.04721, section 4.1]: channels rescaled to weights of equal ranges.

Behind a layer lies an activation f, and other layers read it. Dividing output channel i of the first by s_i > 0 (weights and
bias) and multiplying what the readers take from channel i by s_i leaves the network's function as it is, if

    f(z / s) = f(z) / s                                                                     (1)

(1) holds for no activation, for ReLU, and for what lies between and treats channels alike and alone: spatial padding by
zeros, slices, max and average pools, flattening. ReLU6 is clamp(z, 0, 6), and clamp(z, 0, 6) / s = clamp(z / s, 0, 6 / s): (1)
holds if the bound is rescaled with the channel. So behind an equalized layer with ReLU6 the clamp has a bound *by channel*;
replacing ReLU6 by ReLU, as the paper does, would change the function. A lower bound other than zero does not occur in
networks that this is for, and ends a chain.

With r1_i the largest |weight| of output channel i and r2_i that of all readers' weights on channel i, s_i = sqrt(r1_i / r2_i)
makes both ranges sqrt(r1_i r2_i) (the paper's eq. 11). A depthwise layer is both a reader and a first layer, one row a channel.
Chains are swept until nothing moves; a layer has its final scales only then.

It matters where one scale serves the whole layer (``int8:tensor``). With a scale for each output channel (``int8``) that scale
takes up the first layer's factor; what is left of it is uneven columns in the readers and a wider range of activations, and a
network rather loses (MobileNetV2 in results/ptq). There one scale a layer costs points, not all accuracy as in the paper: in
torchvision's weights the median channel of a depthwise layer has a range 3 to 7 times below the largest channel's, so five or
six of its eight bits are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from haqsearch.graph import Graph, Node
from haqsearch.graph.ir import LAYER_OPS

Scales = Mapping[str, Tensor]
"""Layer -> what its output channels are divided by: (N,), float64, positive."""

_SWEEPS = 100
_SETTLED = 1e-4  # relative change of every scale in a sweep that ends them


@dataclass(frozen=True)
class Chain:
    """A layer, and all the layers that read its output."""

    first: Node
    readers: tuple[Node, ...]


def chains(graph: Graph) -> tuple[Chain, ...]:
    """Every layer whose output channels can be rescaled, in network order; ``graph`` is a prepared one (clamps fused)."""
    users = graph.users
    found = []
    for node in graph.layers:
        low, _ = node.attributes.get("clamp", (None, None))
        if low in (None, 0.0) and node.shape is not None and len(node.shape) == (3 if node.op == "conv2d" else 1):
            readers = _readers(graph, users, node)
            if readers:
                found.append(Chain(node, tuple(readers)))
    return tuple(found)


def _readers(graph: Graph, users: Mapping[str, list[Node]], node: Node) -> list[Node] | None:
    """Layers that read the channels of ``node``; None if anything else does."""
    if node.name == graph.output:
        return None
    found: list[Node] = []
    for user in users[node.name]:
        if user.op in LAYER_OPS:
            if user.op == "linear" and len(graph[user.inputs[0]].shape or ()) != 1:
                return None  # over the last dimension of several: that is not the channels
            found.append(user)
            continue
        behind = _readers(graph, users, user) if _treats_channels_alike(graph, user) else None
        if behind is None:
            return None
        found += behind
    return found


def _treats_channels_alike(graph: Graph, node: Node) -> bool:
    before, after, at = graph[node.inputs[0]].shape or (), node.shape or (), node.attributes
    match node.op:
        case "max_pool2d":
            return True
        case "avg_pool2d":
            low, high = at.get("clamp", (None, None))
            return low in (None, 0.0) and high is None
        case "pad":
            return len(at["amounts"]) <= 2 * (len(before) - 1)
        case "slice":
            return int(at["dim"]) > 1
        case "reshape":  # the channels stay the slowest dimension
            return len(after) == 1 or after[:1] == before[:1]
    return False


def equalizing_scales(graph: Graph) -> Scales:
    """What equalizes ``graph``. A channel of zeros, on either side, keeps its scale: 1.

    Only the largest magnitudes of weights matter, so the sweeps work on a matrix (outputs, inputs) of them for each layer.
    """
    found = chains(graph)
    channels = {chain.first.layer: int(graph.parameters[chain.first.weight].shape[0]) for chain in found}
    inputs = {reader.layer: channels[chain.first.layer] for chain in found for reader in chain.readers}
    largest = {
        node.layer: _by_input(graph.parameters[node.weight], node, inputs.get(node.layer)).double().abs().amax(3)
        for node in graph.layers
    }
    scales = {layer: torch.ones(count, dtype=torch.float64) for layer, count in channels.items()}
    for _ in range(_SWEEPS):
        moved = 0.0
        for chain in found:
            first = largest[chain.first.layer]  # (groups, outputs of a group, inputs of a group)
            out = first.amax(2).flatten()
            into = torch.stack([largest[r.layer].amax(1).flatten() for r in chain.readers]).amax(0)
            factor = torch.where((out > 0) & (into > 0), (out / into).sqrt(), torch.ones_like(out))
            scales[chain.first.layer] *= factor
            largest[chain.first.layer] = first / factor.reshape(first.shape[0], -1, 1)
            for reader in chain.readers:
                matrix = largest[reader.layer]
                largest[reader.layer] = matrix * factor.reshape(matrix.shape[0], 1, -1)
            moved = max(moved, float(factor.log().abs().max()))
        if moved < _SETTLED:
            break
    return scales


def rescaled(graph: Graph, scales: Scales) -> Graph:
    """``graph`` with layers' output channels divided by ``scales``, and their readers' weights multiplied: (1) above."""
    parameters, nodes = dict(graph.parameters), {node.name: node for node in graph.nodes}
    for chain in chains(graph):
        first, scale = chain.first, scales.get(chain.first.layer)
        if scale is None:
            continue
        weight = parameters[first.weight].double()
        parameters[first.weight] = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        if first.bias:
            parameters[first.bias] = parameters[first.bias].double() / scale
        low, high = first.attributes.get("clamp", (None, None))
        if high is not None:
            bounds = torch.as_tensor(high, dtype=torch.float64) / scale
            nodes[first.name] = first.with_attributes(clamp=(low, tuple(bounds.tolist())))
        for reader in chain.readers:
            weight = parameters[reader.weight].double()
            by_input = _by_input(weight, reader, len(scale))
            parameters[reader.weight] = (by_input * scale.reshape(by_input.shape[0], 1, -1, 1)).reshape(weight.shape)
    return graph.replace(
        nodes.values(), {key: value.to(graph.parameters[key].dtype) for key, value in parameters.items()}
    )


def equalize(graph: Graph) -> Graph:
    """``graph`` (prepared) with equalized weights. Its float function is unchanged, to float32's rounding."""
    return rescaled(graph, equalizing_scales(graph))


def _by_input(weight: Tensor, node: Node, channels: int | None) -> Tensor:
    """``weight`` as (groups, outputs of a group, channels of a group, the rest), a flattened image's pixels being of the rest."""
    groups = int(node.attributes.get("groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, (channels or weight.shape[1] * groups) // groups, -1)
