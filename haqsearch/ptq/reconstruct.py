"""Weights rounded so that the layer's output, not each weight, stays close.

Quantizing a layer changes its output by (W - W_q) x. Over calibration data, with the bias corrected for the mean
[Nagel et al. 2019, 1906.04721, section 4.2], the mean squared change of output channel n is e_n C e_n', with e = W - W_q and
C the covariance of the layer's inputs - the objective of AdaRound [Nagel et al. 2020, 2004.10568, eq. 15], which needs no
data once C is known. It is minimised over the codes (``lattice.py``) and over the scale of each channel in turns, the scale by
least squares. The outcome depends on the layer and the format alone: prepared once, a policy costs one forward pass as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.graph import Graph, Node, run_float
from haqsearch.ptq.lattice import descend, nearest_plane
from haqsearch.quant import QWeight, quantize_weight
from haqsearch.spec import Format

VERSION = 3
"""Of the method: weights made by another version are made again."""

POSITIONS = 64  # output positions per image that enter the covariance: neighbours tell little new
_NARROW = 4  # bits; only up to here the outcome depends on the first scale
_STRIPES = 4  # of a symmetric product: each begins at its diagonal, so that 10 of 16 blocks are computed
_WORTH_HALVING = 128  # columns, from which that takes less time than the whole product
_TINY = torch.finfo(torch.float64).tiny
_NOISE = 1e-4  # of the squared mean: what is always the same has no variance, and its rounded sums one of either sign
_DAMPING = 1e-3  # of the mean variance, added to every variance: dead inputs must not leave weights undetermined


@dataclass(frozen=True)
class Effort:
    """How long a minimum is looked for.

    sweeps  over all weights of a channel at one scale; few codes change after the third
    scales  alternations of codes and scale
    starts  first scales tried, relative to that of least weight error
    """

    sweeps: int = 6
    scales: int = 4
    starts: tuple[float, ...] = (0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)


THOROUGH, QUICK = Effort(), Effort(starts=(0.8, 0.9, 1.0, 1.15))


@dataclass(frozen=True)
class InputStatistics:
    """Inputs of one layer as its weights see them: ``mean`` (G, K) and ``covariance`` (G, K, K), float64.

    G groups of K = kh * kw * C / groups inputs; G = 1 but for grouped and depthwise convolutions.
    """

    mean: Tensor
    covariance: Tensor


class StatisticsCollector:
    """Collects the statistics of every layer's input; an ``observe`` of ``run_float``."""

    def __init__(self, graph: Graph, seed: int = 0) -> None:
        self.graph, self.generator = graph, torch.Generator().manual_seed(seed)
        self.readers: dict[str, list[Node]] = {}
        for node in graph.layers:
            self.readers.setdefault(node.inputs[0], []).append(node)
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __call__(self, node: Node, value: Tensor) -> None:
        for layer in self.readers.get(node.name, ()):
            weight = self.graph.parameters[layer.weight]
            chosen = draw_positions(output_size(layer, weight, value), self.generator)
            rows = layer_rows(layer, weight, value, chosen)  # (G, rows, K)
            total, square, count = self.sums.get(layer.layer, (0.0, 0.0, 0))
            total = total + rows.sum(1).double()
            square = square + squares(rows).double()
            self.sums[layer.layer] = (total, square, count + rows.shape[1])

    def statistics(self) -> dict[str, InputStatistics]:
        """By layer name, of what was seen so far."""
        found = {}
        nodes = {node.layer: node for nodes in self.readers.values() for node in nodes}
        for name, (total, square, count) in self.sums.items():
            order = row_order(self.graph.parameters[nodes[name].weight])
            total, square = total[:, order], square[:, order][:, :, order]
            mean = total / count
            found[name] = InputStatistics(mean, square / count - mean[:, :, None] * mean[:, None, :])
        return found


def input_statistics(graph: Graph, batches: Iterable[Tensor], seed: int = 0) -> dict[str, InputStatistics]:
    """Statistics of every layer's input, by layer name, in one float pass over ``batches``."""
    collector = StatisticsCollector(graph, seed)
    with torch.no_grad():
        for batch in batches:
            run_float(graph, batch, collector)
    return collector.statistics()


def layer_rows(layer: Node, weight: Tensor, x: Tensor, chosen: Tensor) -> Tensor:
    """Inputs of ``layer`` as rows (G, rows, K) at the ``chosen`` positions of every sample's output.

    A row goes over the kernel's places first, then over the channels: ``row_order`` brings what is made of rows into the order of
    flattened weights.
    """
    if layer.op == "linear":
        return x.reshape(1, -1, x.shape[-1])
    at, groups = layer.attributes, layer.attributes["groups"]
    (up, left), (down, across), (high, wide) = at["stride"], at["dilation"], at["padding"]
    _, width = output_size(layer, weight, x)
    # Only the patches that were drawn are cut out, and all channels of a place at once: that is much of the time otherwise.
    row = (chosen // width * up)[:, None, None] + (torch.arange(weight.shape[2]) * down)[:, None]
    column = (chosen % width * left)[:, None, None] + torch.arange(weight.shape[3]) * across
    places = F.pad(x, (wide, wide, high, high)).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C)
    patches = places.index_select(1, (row * (x.shape[3] + 2 * wide) + column).flatten())
    rows = patches.reshape(len(x) * len(chosen), -1, groups, weight.shape[1])
    return rows.permute(2, 0, 1, 3).reshape(groups, len(rows), -1)


def squares(rows: Tensor) -> Tensor:
    """Sums (G, K, K) of products of every two columns of ``rows`` (G, rows, K): what is on both sides of the diagonal once."""
    size = rows.shape[2]
    if size < _WORTH_HALVING:
        return rows.transpose(1, 2) @ rows
    found = rows.new_empty(len(rows), size, size)
    edges = [size * part // _STRIPES for part in range(_STRIPES + 1)]
    for start, stop in pairwise(edges):
        stripe = rows[:, :, start:stop].transpose(1, 2) @ rows[:, :, start:]
        found[:, start:stop, start:] = stripe
        found[:, stop:, start:stop] = stripe[:, :, stop - start :].transpose(1, 2)
    return found


def draw_positions(size: Sequence[int], generator: torch.Generator, positions: int = POSITIONS) -> Tensor:
    """Up to ``positions`` positions of outputs of height and width ``size``, as indices into them flattened."""
    return torch.randperm(prod(size), generator=generator)[:positions]


def output_size(layer: Node, weight: Tensor, x: Tensor) -> tuple[int, ...]:
    """Height and width of what ``layer`` makes of ``x``; none if it is linear."""
    if layer.op == "linear":
        return ()
    at = layer.attributes
    return tuple(
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, pad, gap, kernel, step in zip(
            x.shape[2:], at["padding"], at["dilation"], weight.shape[2:], at["stride"], strict=True
        )
    )


def row_order(weight: Tensor) -> Tensor:
    """Where in a row of ``layer_rows`` each of a layer's flattened weights (K,) has its input."""
    if weight.dim() == 2:
        return torch.arange(weight.shape[1])
    channels, *kernel = weight.shape[1:]
    return torch.arange(channels * kernel[0] * kernel[1]).reshape(-1, channels).T.flatten()


def row_weights(weight: Tensor, groups: int) -> Tensor:
    """Weights of a layer as (G, K, N / G): ``layer_rows`` times it are outputs, the bias apart."""
    inverse = row_order(weight).argsort()
    return weight.reshape(groups, weight.shape[0] // groups, -1)[:, :, inverse].transpose(1, 2)


def output_rows(layer: Node, y: Tensor, chosen: Tensor) -> Tensor:
    """Outputs of ``layer`` as rows (G, rows, N / G), at the ``chosen`` positions as ``layer_rows``."""
    if layer.op == "linear":
        return y.reshape(1, -1, y.shape[-1])
    rows = y.flatten(2)[:, :, chosen].reshape(len(y), layer.attributes["groups"], -1, len(chosen))
    return rows.permute(1, 0, 3, 2).reshape(layer.attributes["groups"], -1, rows.shape[2])


def reconstruct_weight(
    weight: Tensor,
    format: Format,
    statistics: InputStatistics,
    where: str = "weight",
    has_bias: bool = True,
    effort: Effort = THOROUGH,
) -> QWeight:
    """Integer weights of least output error, with the bias correction that goes with them. Errors as ``quantize_weight``'s.

    Never worse on the calibration data than nearest rounding with its bias corrected. Without a bias to correct, the mean of
    the change counts as error too.
    """
    groups, size, _ = statistics.covariance.shape
    rows = weight.detach().double().reshape(groups, -1, size)  # (G, N / G, K)
    moments = statistics.covariance.clone()
    if not has_bias:
        moments += statistics.mean[:, :, None] * statistics.mean[:, None, :]
    variance = moments.diagonal(dim1=1, dim2=2)
    variance += _DAMPING * variance.mean(1, keepdim=True).clamp(min=_TINY)
    variance.copy_(torch.maximum(variance, _NOISE * statistics.mean.square()).clamp(min=_TINY))
    nearest = quantize_weight(weight, format, where)
    shape = (groups, -1, rows.shape[1])
    first = nearest.scale.double().reshape(rows.shape[:2])
    shared = format.computed_as.granularity == "tensor"  # no channel may move the scale of all
    starts = effort.starts if format.width <= _NARROW and not shared else (1.0,)
    # All first scales are descended from at once, as if each channel were there several times; nearest rounding competes.
    many, wanted = (t.repeat(1, len(starts), 1) for t in (rows, rows @ moments))
    scale = torch.cat([first * start for start in starts], 1)
    grid = nearest.grid.reshaped(*rows.shape).repeated(1, len(starts), 1)
    codes = nearest_plane(many, scale, moments, grid)
    product = codes @ moments
    for _ in range(effort.scales):
        codes, slope = descend(many, codes, wanted - product * scale[..., None], scale, moments, grid, effort.sweeps)
        product = (wanted - slope) / scale[..., None]  # codes @ moments, for less
        if shared:
            break
        power = (product * codes).sum(2)
        fitted = (product * many).sum(2) / power.clamp(min=_TINY)
        scale = torch.where((power > 0) & (fitted > 0), fitted, scale).float().double()
    usual = nearest.codes.double().reshape(rows.shape)
    many, scale, codes = (torch.cat(two, 1) for two in ((many, rows), (scale, first), (codes, usual)))
    slope = torch.cat([wanted, rows @ moments], 1) - torch.cat([product, usual @ moments], 1) * scale[..., None]
    error = ((many - codes * scale[..., None]) * slope).sum(2)  # mean squared change of each output channel
    best = error.reshape(shape).argmin(1)  # (G, N / G)
    scale = scale.reshape(shape).gather(1, best[:, None])[:, 0]
    codes = codes.reshape(groups, -1, *rows.shape[1:]).gather(1, best[:, None, :, None].expand(-1, -1, -1, size))[:, 0]
    correction = torch.einsum("gnk,gk->gn", rows - codes * scale[..., None], statistics.mean).reshape(-1).float()
    return replace(
        nearest,
        codes=codes.reshape(weight.shape).to(torch.int8),
        scale=scale.reshape(-1).float(),
        bias_correction=correction if has_bias else None,
    )
