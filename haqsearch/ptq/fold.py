"""Folding: what a deployed network does not compute separately is put into the layer before it."""

from __future__ import annotations

import torch

from haqsearch.graph.ir import ARITHMETIC, LAYER_OPS, Graph, Node


def prepare(graph: Graph) -> Graph:
    """The graph as deployed: batch norms folded, activations fused. Its float function is unchanged (to rounding)."""
    return fuse_clamps(fold_batch_norms(graph))


def fold_batch_norms(graph: Graph) -> Graph:
    """Fold every batch norm that is the only reader of a layer: w' = w * scale, b' = b * scale + shift (per channel).

    scale = gamma / sqrt(var + eps), shift = beta - mean * scale [Jacob et al. 2018, eq. 14]. Others stay as they are.
    """
    users = graph.users
    parameters = dict(graph.parameters)
    nodes: dict[str, Node] = {}
    alias: dict[str, str] = {}
    for node in graph.nodes:
        node = node.renamed(alias)
        affine = node.attributes.get("affine")
        before = nodes.get(node.inputs[0]) if affine else None
        original = graph[node.name].inputs[0] if affine else ""
        if affine and before is not None and before.op in LAYER_OPS and len(users[original]) == 1:
            scale, shift = (parameters[key] for key in affine)
            weight = parameters[before.weight].double()
            bias = parameters[before.bias].double() if before.bias else torch.zeros_like(shift)
            bias_key = before.bias or f"{before.layer}.bias"
            parameters[before.weight] = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).float()
            parameters[bias_key] = (bias * scale + shift).float()
            nodes[before.name] = before.with_(bias=bias_key)
            alias[node.name] = before.name
            continue
        nodes[node.name] = node
    output = alias.get(graph.output, graph.output)
    return _pruned(graph.replace(nodes.values(), parameters, output))


def fuse_clamps(graph: Graph) -> Graph:
    """Fuse every ReLU, ReLU6 or clamp that is the only reader of an arithmetic node into that node."""
    users = graph.users
    nodes: dict[str, Node] = {}
    alias: dict[str, str] = {}
    for node in graph.nodes:
        node = node.renamed(alias)
        if node.op == "clamp":
            before = nodes[node.inputs[0]]
            only = len(users[graph[node.name].inputs[0]]) == 1 and graph.output != graph[node.name].inputs[0]
            if before.op in ARITHMETIC - {"input", "float", "clamp"} and only and "clamp" not in before.attributes:
                nodes[before.name] = before.with_attributes(clamp=(node.attributes["low"], node.attributes["high"]))
                alias[node.name] = before.name
                continue
        nodes[node.name] = node
    return graph.replace(nodes.values(), output=alias.get(graph.output, graph.output))


def _pruned(graph: Graph) -> Graph:
    """Without the parameters no node names any more."""
    used = set().union(*(node.parameters for node in graph.nodes))
    return graph.replace(graph.nodes, {key: value for key, value in graph.parameters.items() if key in used})
