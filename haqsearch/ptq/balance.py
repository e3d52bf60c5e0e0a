"""Channels of a narrow activation rescaled to more equal ranges, where that is free.

A tensor of activations has one scale. With few bits the channels of small range then have hardly a code left, and a scale by
channel is what programs do not have. But a factor can be moved across a ReLU, from a layer's output channels into the weights
that read them (``equalize.py``), and a layer whose weights have a scale by channel takes it up in that: its codes stay as they
are. What it costs is columns of less equal ranges in the readers' weights. So half the way is gone, the migration strength of
SmoothQuant [Xiao et al. 2023, 2211.10438, eq. 4]:

    s_i = sqrt(r_i / r),  r_i the scale of least squared error of channel i alone, r their geometric mean

ResNet-20, rounded in network order; 10,000 training images that calibrated nothing, mean squared change of the logits (centred),
two sets of 1,024 calibration images:

|          | W8A4  | W4A4         | W3A3  |
|----------|-------|--------------|-------|
| as it is | 0.926 | 1.116, 1.123 | 3.433 |
| balanced | 0.881 | 1.073, 1.078 | 3.322 |

With r_i the root mean square of the channel instead, W4A4 had 1.170; with all of the way gone (s_i = r_i / r) 1.114. It is not so
everywhere: by the same measure, on 500 samples, ResNet-8 had 0.797 as it is and 0.835 balanced at W4A4, DS-CNN 1.430 and 1.586.
So both are made and the better one on the calibration data is kept (``Prepared.in_order``).

Only values behind ReLU that layers alone read, below the stream's width, and behind layers with a scale by channel. A ceiling as
of ReLU6 would be one by channel then, and an operation more. In the residual stream, whose channels are tied through a whole
stage, the same made things worse.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from haqsearch.graph import Graph, Node, run_float
from haqsearch.graph.plan import STREAM, make_plan
from haqsearch.ptq.equalize import Scales, chains
from haqsearch.ptq.reconstruct import draw_positions, output_rows
from haqsearch.quant.grid import Grid, least_error_scale
from haqsearch.spec import Format, Policy

VERSION = 2
"""Of the method: figures of another version are measured again."""

STRENGTH = 0.5
"""How far of the way to equal ranges, in [0, 1]: 0 leaves every channel as it is (SmoothQuant's alpha)."""

IMAGES = 256
"""Calibration samples, at most, that the scales are found from."""


def balancing_scales(graph: Graph, policy: Policy, batches: Iterable[Tensor], seed: int = 0) -> Scales:
    """Layer -> what its output channels are divided by, for the layers of ``graph`` (prepared) that ``policy`` lets one do it to.

    From the first ``IMAGES`` samples, in one float pass; a channel of zeros keeps its scale, and what all channels share is left
    to the ranges.
    """
    wanted, generator = _narrow(graph, policy), torch.Generator().manual_seed(seed)
    kept: dict[str, list[Tensor]] = {}

    def observe(node: Node, value: Tensor) -> None:
        if node.name in wanted:
            chosen = draw_positions(value.shape[2:], generator)
            kept.setdefault(node.name, []).append(output_rows(node, value, chosen).transpose(1, 2).flatten(0, 1))

    seen = 0
    with torch.no_grad():
        for batch in batches if wanted else ():
            if seen < IMAGES:
                run_float(graph, batch[: IMAGES - seen], observe)
                seen += len(batch)
    return {graph[name].layer: _scales(torch.cat(rows, 1).double(), wanted[name]) for name, rows in kept.items()}


def _scales(rows: Tensor, format: Format) -> Tensor:
    """(N,) from values of each channel (N, samples)."""
    alive = rows.amax(1) > 0
    logs = least_error_scale(rows, Grid(format.code_min, format.code_max)).double().log()
    return torch.where(alive, (STRENGTH * (logs - logs[alive].mean())).exp(), torch.ones_like(logs))


def _narrow(graph: Graph, policy: Policy) -> dict[str, Format]:
    """Values of layers whose output channels take other factors for nothing, and that are read in few bits; in which."""
    plan = make_plan(graph)
    return {
        chain.first.name: policy[chain.readers[0].layer].activation
        for chain in chains(graph)
        if plan.slots[chain.first.name] == ("layers",)
        and chain.first.attributes.get("clamp") == (0.0, None)
        and policy[chain.readers[0].layer].activation.width < STREAM.width
        and policy[chain.first.layer].weight.computed_as.granularity != "tensor"
    }
