"""Reconstruction in network order: every layer makes up for what the quantized layers before it have changed.

Float and quantized network run side by side over the calibration inputs. At each layer the float network has inputs x and
the quantized one x', and the codes are chosen so that W_q x' stays close to W x [the asymmetric objective of AdaRound, Nagel
et al. 2020, 2004.10568, section 3.4]. With S = cov(x, x') and C = cov(x', x') that is least squares to W x, whose real-valued
solution is W* = W S C^-1, and then the problem of ``reconstruct`` with W* for W. It depends on the whole policy, so it is for the
few that are chosen.

A layer whose output is only added to another value z, as at the end of a residual block, is to give the sum of the float
network, not its own part of it: W x + z - z'. So it also makes up for what was lost beside it (the block-wise objective of BRECQ
[Li et al. 2021, 2102.05426, section 3.2], one layer at a time).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from haqsearch.graph import Graph, Node
from haqsearch.graph.apply import fake_quantize
from haqsearch.graph.execute import call_float, compute
from haqsearch.graph.ir import LAYER_OPS, MOVES
from haqsearch.graph.plan import STREAM, Plan
from haqsearch.graph.ranges import CalibratedRanges
from haqsearch.ptq.reconstruct import (
    POSITIONS,
    QUICK,
    THOROUGH,
    InputStatistics,
    layer_rows,
    output_rows,
    reconstruct_weight,
    row_order,
)
from haqsearch.quant import QWeight
from haqsearch.spec import Policy

VERSION = 3
"""Of the method: figures of another version are measured again."""

_BATCH = 128
# Of the mean variance: keeps W* near W in directions the inputs hardly take, where it would fit the calibration inputs alone. At
# a hundredth, ResNet-20 at W2A8 had a KL of 0.043 on 1,024 calibration images, of 0.082 on 5,000 others; now of 0.078 on both.
_RIDGE = 0.1
_NOISE = 1e-5  # of the mean square: what sums of float32 may be off

Batches = list[Any]


def reconstruct_in_order(
    graph: Graph,
    plan: Plan,
    policy: Policy,
    ranges: CalibratedRanges,
    inputs: Tensor,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, QWeight]:
    """Integer weights of every layer under ``policy``, with bias corrections, from calibration ``inputs`` (N, ...).

    One pass over the network; the values of all inputs that are still to be read are held at once. ``quick``: to tell policies
    apart, from half of the inputs, half of the positions and with fewer sweeps.
    """
    with torch.no_grad():
        chosen = inputs[: (len(inputs) + 1) // 2] if quick else inputs
        return _Walk(graph, plan, policy, ranges, seed, quick).weights(chosen)


class _Walk:
    def __init__(
        self, graph: Graph, plan: Plan, policy: Policy, ranges: CalibratedRanges, seed: int, quick: bool
    ) -> None:
        self.positions, self.effort = (POSITIONS // 2, QUICK) if quick else (POSITIONS, THOROUGH)
        self.graph, self.plan, self.policy, self.ranges = graph, plan, policy, ranges
        self.generator, self.users = torch.Generator().manual_seed(seed), graph.users
        self.float: dict[str, Batches] = {}  # node -> values of the float network, by batch
        self.quantized: dict[str, dict[str, Batches]] = {}  # node -> slot -> values of the quantized network, by batch
        self.made: dict[str, QWeight] = {}

    def weights(self, inputs: Tensor) -> dict[str, QWeight]:
        last = {name: i for i, node in enumerate(self.graph.nodes) for name in node.inputs}
        batches = inputs.split(_BATCH)
        for i, node in enumerate(self.graph.nodes):
            self._node(node, batches)
            for name in node.inputs:
                if last[name] == i:
                    del self.float[name], self.quantized[name]
        return self.made

    def _node(self, node: Node, inputs: tuple[Tensor, ...]) -> None:
        graph, slots = self.graph, self.plan.slots[node.name]
        many = range(len(inputs))
        exact = [{name: self.float[name][b] for name in node.inputs} for b in many]
        if node.op in MOVES:
            self.float[node.name] = [compute(node, [values[node.inputs[0]]]) for values in exact]
            source = self.quantized[node.inputs[0]]
            self.quantized[node.name] = {slot: [compute(node, [value]) for value in source[slot]] for slot in slots}
            return
        read = {name: self.quantized[name][self.plan.slot(node, name)] for name in node.inputs}
        rough = [{name: batches[b] for name, batches in read.items()} for b in many]
        if node.op == "input":
            self.float[node.name], result = list(inputs), list(inputs)
        elif node.op == "float":
            self.float[node.name] = [call_float(node, values, graph.parameters) for values in exact]
            result = [call_float(node, values, graph.parameters) for values in rough]
        else:
            weight = graph.parameters[node.weight] if node.weight else None
            bias = graph.parameters[node.bias] if node.bias else None
            self.float[node.name] = [
                compute(node, list(values.values()), weight, bias) for values in _ordered(node, exact)
            ]
            if node.op in LAYER_OPS:
                made = self._layer(node, exact, rough)
                weight = made.dequantize()
                bias = bias if made.bias_correction is None or bias is None else bias + made.bias_correction
            result = [compute(node, list(values.values()), weight, bias) for values in _ordered(node, rough)]
        self.quantized[node.name] = self._slots(node, slots, result)

    def _slots(self, node: Node, slots: tuple[str, ...], values: Batches) -> dict[str, Batches]:
        """The result in every format it is wanted in; narrowed from the stream where there is one, as lowering does."""
        found = {}
        if "stream" in slots and node.op not in {"input", "float"}:
            values = [fake_quantize(v, self.ranges.params(node.name, STREAM)) for v in values]
        for slot in slots:
            format = self.plan.format(node.name, slot, self.policy)
            params = None if format.is_float else self.ranges.params(node.name, format)
            found[slot] = [v if params is None else fake_quantize(v, params) for v in values]
        return found

    def _layer(self, node: Node, exact: list[dict[str, Tensor]], rough: list[dict[str, Tensor]]) -> QWeight:
        weight = self.graph.parameters[node.weight]
        name = node.inputs[0]
        beside = self._beside(node)
        sums: list[Any] = [0.0] * 6
        count = 0
        for before, after, lost in zip(exact, rough, beside, strict=True):
            state = self.generator.get_state()
            x = layer_rows(node, weight, before[name], self.generator, self.positions)  # (G, rows, K)
            self.generator.set_state(state)  # the same positions
            y = layer_rows(node, weight, after[name], self.generator, self.positions)
            z = x.new_zeros(len(x), x.shape[1], 1)  # (G, rows, N / G), or nothing
            if lost is not None:
                self.generator.set_state(state)
                z = output_rows(node, lost, self.generator, self.positions)
            parts = (x.sum(1), y.sum(1), z.sum(1), *(v.transpose(1, 2) @ y for v in (x, y, z)))
            sums = [total + part.double() for total, part in zip(sums, parts, strict=True)]
            count += x.shape[1]
        order = row_order(weight)
        mean_x, mean_y, mean_z, *products = (total / count for total in sums)
        mean_x, mean_y = mean_x[:, order], mean_y[:, order]
        cross, square, lost_cross = (product[..., order] for product in products)
        cross, square = cross[:, order], square[:, order]
        # Values that are always the same have no other variance than what the sums are off.
        noise = _NOISE * square.shape[1] * square.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        if node.bias:
            cross = cross - mean_x[:, :, None] * mean_y[:, None, :]
            square = square - mean_y[:, :, None] * mean_y[:, None, :]
            lost_cross = lost_cross - mean_z[:, :, None] * mean_y[:, None, :]
        rows = weight.double().reshape(len(square), -1, square.shape[1])  # (G, N / G, K)
        ridge = torch.maximum(_RIDGE * square.diagonal(dim1=1, dim2=2).mean(1), noise)
        damped = square + ridge[:, None, None] * torch.eye(square.shape[1], dtype=torch.float64)
        # W* = (W S + cov(z - z', x')) C^-1, written as a change of W so that the ridge pulls towards W and not towards zero.
        wanted = rows @ (cross - square) + lost_cross
        target = rows + torch.linalg.solve(damped, wanted.transpose(1, 2)).transpose(1, 2)
        choice = self.policy[node.layer].weight
        statistics = InputStatistics(mean_y, square)
        made = reconstruct_weight(
            target.reshape(weight.shape), choice, statistics, f"layer {node.layer}", bool(node.bias), self.effort
        )
        if made.bias_correction is not None:  # it is (W* - W_q) mean(x'); wanted is W mean(x) + mean(z - z')
            drift = torch.einsum("gnk,gk->gn", rows, mean_x) - torch.einsum("gnk,gk->gn", target, mean_y) + mean_z
            made = replace(made, bias_correction=made.bias_correction + drift.reshape(-1).float())
        self.made[node.layer] = made
        return made

    def _beside(self, node: Node) -> Batches:
        """z - z' of the value z that the output of ``node`` is added to, by batch; Nones if there is none, or not yet."""
        users = self.users[node.name]
        add = users[0] if len(users) == 1 and users[0].op == "add" and node.name != self.graph.output else None
        others = [name for name in add.inputs if name != node.name and name in self.quantized] if add else []
        if add is None or not others or node.attributes.get("clamp") or self.graph[others[0]].shape != node.shape:
            return [None] * len(self.float[node.inputs[0]])
        rough = self.quantized[others[0]][self.plan.slot(add, others[0])]
        return [exact - z for exact, z in zip(self.float[others[0]], rough, strict=True)]


def _ordered(node: Node, batches: list[dict[str, Any]]) -> list[dict[int, Any]]:
    """Inputs by position: an operation may read one value twice."""
    return [{i: values[name] for i, name in enumerate(node.inputs)} for values in batches]
