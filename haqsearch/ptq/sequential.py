"""Reconstruction in network order: every layer makes up for what the quantized layers before it have changed.

The quantized network is walked layer by layer over the calibration inputs, beside what the float network puts out there
(``FloatOutputs``: the same for every policy). At each layer the float network has inputs x and the quantized one x', and codes
are chosen so that W_q x' stays close to W x [the asymmetric objective of AdaRound, Nagel et al. 2020, 2004.10568, section 3.4].
With C = cov(x', x') and d = W x - W x', what would be missing with the weights as they are, that is least squares to W x, whose
real-valued solution is W* = W + cov(d, x') C^-1, and then the problem of ``reconstruct`` with W* for W. It depends on the whole
policy, so it is for the few that are chosen; but on no more of it than what comes before the layer, so policies that begin alike
share the weights of their beginning.

A layer whose output is only added to another value z, as at the end of a residual block, is to give the sum of the float
network, not its own part of it: d has z - z' added. So it also makes up for what was lost beside it (the block-wise objective of
BRECQ [Li et al. 2021, 2102.05426, section 3.2], one layer at a time).
"""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from haqsearch.graph import Graph, Node, run_float
from haqsearch.graph.apply import fake_quantize
from haqsearch.graph.execute import call_float, compute
from haqsearch.graph.ir import LAYER_OPS, MOVES
from haqsearch.graph.plan import STREAM, Plan
from haqsearch.graph.ranges import CalibratedRanges
from haqsearch.ptq.equalize import Scales
from haqsearch.ptq.reconstruct import (
    POSITIONS,
    QUICK,
    THOROUGH,
    InputStatistics,
    draw_positions,
    layer_rows,
    output_rows,
    output_size,
    reconstruct_weight,
    row_order,
    row_weights,
    squares,
)
from haqsearch.quant import QWeight
from haqsearch.spec import Policy

VERSION = 5
"""Of the method: figures of another version are measured again."""

# Enough to tell policies apart. Of 32 policies of ResNet-20 at 2.5 bits, and of 30 at a quarter of the bit operations, Spearman's
# rho between the score on 1,000 search images and that on 4,000 others once rounded with all care: 0.83, 0.76; as much as with
# 512 inputs and 32 positions (0.84, 0.75), in 0.6 of the time, and nearly that of the careful ones' own scores (0.85, 0.79).
QUICK_INPUTS, QUICK_POSITIONS = 256, 16

_BATCH = 128
# Of the mean variance: keeps W* near W in directions the inputs hardly take, where it would fit the calibration inputs alone. At
# a hundredth, ResNet-20 at W2A8 had a KL of 0.043 on 1,024 calibration images, of 0.082 on 5,000 others; now of 0.078 on both.
_RIDGE = 0.1
_NOISE = 1e-5  # of the mean square: what sums of float32 may be off

_KEPT_BYTES = 2**28  # of weights that are kept for policies that begin alike: a thousand policies of ResNet-20

Batches = list[Any]


class _Kept:
    """Weights that were made before, those of latest date; for several threads."""

    def __init__(self, most: int = _KEPT_BYTES) -> None:
        self.most, self.bytes = most, 0
        self._made: dict[Hashable, QWeight] = {}
        self._lock = Lock()

    def get(self, key: Hashable) -> QWeight | None:
        return self._made.get(key)

    def put(self, key: Hashable, weight: QWeight) -> None:
        with self._lock:
            if key in self._made:
                return
            self._made[key] = weight
            self.bytes += weight.codes.nbytes
            while self.bytes > self.most:
                self.bytes -= self._made.pop(next(iter(self._made))).codes.nbytes


class FloatOutputs:
    """What every layer of the float network puts out on ``inputs`` (N, ...), its bias apart, at positions drawn for it.

    With the value beside it added, where its output is only added to one. ``quick``: to tell policies apart, of ``QUICK_INPUTS``
    inputs and at ``QUICK_POSITIONS`` positions. Weights reconstructed from it are kept here, for policies that begin alike.

    output  of the network (N, ...), of the inputs that are used
    """

    def __init__(self, graph: Graph, inputs: Tensor, quick: bool = False, seed: int = 0) -> None:
        self.graph, self.inputs, self.quick = graph, inputs, quick
        self.batches = inputs[: QUICK_INPUTS if quick else None].split(_BATCH)
        self.beside = _beside(graph)
        self.positions: dict[str, list[Tensor]] = {node.name: [] for node in graph.layers}  # of each batch
        self.rows: dict[str, list[Tensor]] = {node.name: [] for node in graph.layers}  # (G, rows, N / G) of each batch
        self.made = _Kept()
        self._generator, self._count = torch.Generator().manual_seed(seed), QUICK_POSITIONS if quick else POSITIONS
        self._last = {name: node.name for node in graph.layers for name in self._read(node)}
        self._values: dict[str, Tensor] = {}
        with torch.no_grad():
            self.output = torch.cat([run_float(graph, batch, self._observe) for batch in self.batches])

    def rescaled(self, graph: Graph, scales: Scales) -> FloatOutputs:
        """The same for ``graph``, which is this one with the output channels of some layers divided by ``scales``."""
        other = copy(self)
        other.graph, other.made, other.rows = graph, _Kept(), dict(self.rows)
        for node in graph.layers:
            if (scale := scales.get(node.layer)) is not None:
                by_group = scale.float().reshape(node.attributes.get("groups", 1), 1, -1)
                other.rows[node.name] = [rows / by_group for rows in self.rows[node.name]]
        return other

    def _read(self, node: Node) -> set[str]:
        return {node.inputs[0], self.beside.get(node.name, node.inputs[0])}

    def _observe(self, node: Node, value: Tensor) -> None:
        if node.name in self.rows:
            x, weight = self._values[node.inputs[0]], self.graph.parameters[node.weight]
            chosen = draw_positions(output_size(node, weight, x), self._generator, self._count)
            self.positions[node.name].append(chosen)
            self.rows[node.name].append(self.outputs(node, chosen, self._values))
            for name in self._read(node):
                if self._last[name] == node.name:
                    del self._values[name]
        if node.name in self._last:
            self._values[node.name] = value

    def outputs(self, node: Node, chosen: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Rows (G, rows, N / G) that the float weights of ``node`` make of ``values``, the one beside added."""
        weight, beside = self.graph.parameters[node.weight], self.beside.get(node.name)
        groups = node.attributes.get("groups", 1)
        rows = layer_rows(node, weight, values[node.inputs[0]], chosen) @ row_weights(weight, groups)
        return rows if beside is None else rows + output_rows(node, values[beside], chosen)


def _beside(graph: Graph) -> dict[str, str]:
    """Layer's node -> the earlier value that its output is added to, and to nothing else."""
    found, users = {}, graph.users
    at = {node.name: i for i, node in enumerate(graph.nodes)}
    for node in graph.layers:
        add = users[node.name][0] if len(users[node.name]) == 1 else node
        if add.op != "add" or node.name == graph.output or node.attributes.get("clamp"):
            continue
        others = [name for name in add.inputs if at[name] < at[node.name]]
        if others and graph[others[0]].shape == node.shape:
            found[node.name] = others[0]
    return found


def reconstruct_in_order(
    plan: Plan, policy: Policy, ranges: CalibratedRanges, wanted: FloatOutputs
) -> dict[str, QWeight]:
    """Integer weights of every layer under ``policy``, with bias corrections, from the inputs of ``wanted``.

    One pass over the network; the values of all inputs that are still to be read are held at once.
    """
    with torch.no_grad():
        return _Walk(plan, policy, ranges, wanted).weights()


class _Walk:
    def __init__(self, plan: Plan, policy: Policy, ranges: CalibratedRanges, wanted: FloatOutputs) -> None:
        self.graph, self.wanted, self.effort = wanted.graph, wanted, QUICK if wanted.quick else THOROUGH
        self.plan, self.policy, self.ranges = plan, policy, ranges
        self.values: dict[str, dict[str, Batches]] = {}  # node -> slot -> values of the quantized network, by batch
        self.made: dict[str, QWeight] = {}
        self.before: tuple[str, ...] = ()  # all formats of what comes before, which decide what values are

    def weights(self) -> dict[str, QWeight]:
        last = {name: i for i, node in enumerate(self.graph.nodes) for name in node.inputs}
        for i, node in enumerate(self.graph.nodes):
            self.values[node.name] = self._node(node)
            for name in node.inputs:
                if last[name] == i:
                    self.values.pop(name, None)
        return self.made

    def _node(self, node: Node) -> dict[str, Batches]:
        graph, slots = self.graph, self.plan.slots[node.name]
        if node.op in MOVES:
            source = self.values[node.inputs[0]]
            return {slot: [compute(node, [value]) for value in source[slot]] for slot in slots}
        if node.op == "input":
            return self._slots(node, slots, list(self.wanted.batches))
        read = {name: self.values[name][self.plan.slot(node, name)] for name in node.inputs}
        batches = [{name: values[b] for name, values in read.items()} for b in range(len(self.wanted.batches))]
        if node.op == "float":
            return self._slots(node, slots, [call_float(node, values, graph.parameters) for values in batches])
        weight, bias = None, graph.parameters[node.bias] if node.bias else None
        if node.op in LAYER_OPS:
            made = self.made[node.layer] = self._layer(node, batches)
            weight = made.dequantize()
            bias = bias if made.bias_correction is None or bias is None else bias + made.bias_correction
        inputs = ([values[name] for name in node.inputs] for values in batches)  # an operation may read one value twice
        return self._slots(node, slots, [compute(node, values, weight, bias) for values in inputs])

    def _slots(self, node: Node, slots: tuple[str, ...], values: Batches) -> dict[str, Batches]:
        """The result in every format it is wanted in; narrowed from the stream where there is one, as lowering does."""
        found = {}
        if "stream" in slots and node.op not in {"input", "float"}:
            values = [fake_quantize(v, self.ranges.params(node.name, STREAM)) for v in values]
        for slot in slots:
            format = self.plan.format(node.name, slot, self.policy)
            params = None if format.is_float else self.ranges.params(node.name, format)
            self.before += (str(format),)
            found[slot] = [v if params is None else fake_quantize(v, params) for v in values]
        return found

    def _layer(self, node: Node, batches: list[dict[str, Tensor]]) -> QWeight:
        self.before += (str(self.policy[node.layer].weight),)
        key = (self.ranges, node.layer, self.before)
        made = self.wanted.made.get(key)
        if made is None:
            made = self._reconstructed(node, batches)
            self.wanted.made.put(key, made)
        return made

    def _reconstructed(self, node: Node, batches: list[dict[str, Tensor]]) -> QWeight:
        weight, order = self.graph.parameters[node.weight], row_order(self.graph.parameters[node.weight])
        mean, missing, square, cross = self._moments(node, batches)
        mean, square, cross = mean[:, order], square[:, order][:, :, order], cross[:, :, order]
        # Values that are always the same have no other variance than what the sums are off.
        noise = _NOISE * square.shape[1] * square.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        if node.bias:
            square = square - mean[:, :, None] * mean[:, None, :]
            cross = cross - missing[:, :, None] * mean[:, None, :]
        rows = weight.double().reshape(len(square), -1, square.shape[1])  # (G, N / G, K)
        ridge = torch.maximum(_RIDGE * square.diagonal(dim1=1, dim2=2).mean(1), noise)
        damped = square + ridge[:, None, None] * torch.eye(square.shape[1], dtype=torch.float64)
        # Written as a change of W, so that the ridge pulls towards W and not towards zero.
        target = rows + torch.linalg.solve(damped, cross.transpose(1, 2)).transpose(1, 2)
        choice = self.policy[node.layer].weight
        made = reconstruct_weight(
            target.reshape(weight.shape), choice, InputStatistics(mean, square), f"layer {node.layer}", bool(node.bias),
            self.effort,
        )  # fmt: skip
        if made.bias_correction is not None:  # it is (W* - W_q) mean(x'); wanted is (W - W_q) mean(x') + mean(d)
            drift = missing - torch.einsum("gnk,gk->gn", target - rows, mean)
            made = replace(made, bias_correction=made.bias_correction + drift.reshape(-1).float())
        return made

    def _moments(self, node: Node, batches: list[dict[str, Tensor]]) -> list[Tensor]:
        """Means of x' (G, K), of d (G, N / G), of x' x' (G, K, K) and of d x' (G, N / G, K), in the order of rows."""
        weight, beside = self.graph.parameters[node.weight], self.wanted.beside.get(node.name)
        columns = row_weights(weight, node.attributes.get("groups", 1))
        added = None
        if beside is not None:
            add = self.graph.users[node.name][0]
            added = self.values[beside][self.plan.slot(add, beside)]
        sums: list[Any] = [0.0] * 4
        count = 0
        for b, values in enumerate(batches):
            chosen = self.wanted.positions[node.name][b]
            x = layer_rows(node, weight, values[node.inputs[0]], chosen)  # (G, rows, K)
            missing = self.wanted.rows[node.name][b] - x @ columns
            if added is not None:
                missing = missing - output_rows(node, added[b], chosen)
            parts = (x.sum(1), missing.sum(1), squares(x), missing.transpose(1, 2) @ x)
            sums = [total + part.double() for total, part in zip(sums, parts, strict=True)]
            count += x.shape[1]
        return [total / count for total in sums]
