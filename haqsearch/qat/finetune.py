"""The fine-tune loop: distil the float network into its quantized copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from haqsearch.data import Splits
from haqsearch.errors import ModelError
from haqsearch.graph import Graph, run_float
from haqsearch.graph.apply import QuantizedNetwork
from haqsearch.graph.plan import Plan
from haqsearch.graph.ranges import CalibratedRanges
from haqsearch.quant import QWeight
from haqsearch.spec import Format, Policy

_SCALE_RATE = 10.0
"""Learning rate of the logarithms of activation scales, relative to that of the weights: a scale may move by a tenth or two."""


@dataclass(frozen=True)
class FinetuneSettings:
    """``steps`` of Adam at ``learning_rate`` (cosine to zero) on batches of ``batch`` samples of the training split."""

    steps: int = 300
    batch: int = 128
    learning_rate: float = 3e-5
    seed: int = 0


@dataclass(frozen=True)
class Finetuned:
    """What training gives: the graph with moved weights, their integer codes by layer, and the moved activation scales."""

    graph: Graph
    weights: dict[str, QWeight]
    factors: dict[tuple[str, Format], float]


def finetune(
    graph: Graph,
    plan: Plan,
    policy: Policy,
    ranges: CalibratedRanges,
    weights: dict[str, QWeight],
    splits: Splits,
    settings: FinetuneSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> Finetuned:
    """Train the quantized copy of ``graph`` under ``policy``; the graph itself is untouched.

    The loss is KL(float network || quantized copy) on augmented training samples: the float network's answers carry more
    than the labels, which a trained network has mostly learned by heart. Weight scales stay as calibrated; the scales of
    narrow activations are learned [LSQ, Esser et al. 2019]. Deterministic for a seed and a number of threads. Raises
    ModelError if the loss stops being finite.
    """
    network = QuantizedNetwork(graph, policy, ranges, weights, plan)
    optimizer = torch.optim.Adam(network.trained.parameters(), settings.learning_rate)
    if factors := list(network.log_factors.parameters()):
        optimizer.add_param_group({"params": factors, "lr": settings.learning_rate * _SCALE_RATE})
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.steps, 1))
    generator = torch.Generator().manual_seed(settings.seed)
    inputs = splits.train[0]
    batch = min(settings.batch, len(inputs))
    for step in range(settings.steps):
        samples = inputs[torch.randint(len(inputs), (batch,), generator=generator)]
        if splits.augment is not None:
            samples = splits.augment(samples, generator)
        with torch.no_grad():
            target = run_float(graph, samples).log_softmax(1)
        loss = F.kl_div(network(samples).log_softmax(1), target, reduction="batchmean", log_target=True)
        if not bool(torch.isfinite(loss)):
            raise ModelError(f"fine-tuning diverged at step {step}; lower qat.learning_rate ({settings.learning_rate})")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step, float(loss.detach()))
    trained = network.trained_graph()
    codes = {node.layer: weights[node.layer].encode(trained.parameters[node.weight]) for node in trained.layers}
    return Finetuned(trained, codes, network.trained_factors())
