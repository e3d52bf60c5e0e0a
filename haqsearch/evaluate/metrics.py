"""Accuracy, loss and KL divergence of logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph import Graph, run_float

BATCH = 100


@dataclass(frozen=True)
class Scores:
    """accuracy in [0, 1]; loss and kl in nats; logit_mse in squared logits; all means over ``samples``."""

    accuracy: float
    loss: float
    kl: float
    logit_mse: float
    samples: int


def in_batches(function: Callable[[Tensor], Tensor], inputs: Tensor, batch: int = BATCH) -> Tensor:
    """``function`` over ``inputs`` (N, ...) in batches, concatenated; no gradients."""
    with torch.no_grad():
        return torch.cat([function(part) for part in inputs.split(batch)])


def float_logits(graph: Graph, inputs: Tensor) -> Tensor:
    """Logits (N, classes) of the float network."""
    return in_batches(lambda part: run_float(graph, part), inputs)


def score_logits(logits: Tensor, labels: Tensor, reference: Tensor) -> Scores:
    """Scores of ``logits`` (N, classes) against ``labels`` (N,) and the float model's logits ``reference``.

    KL(float || quantized), mean over the samples; ``logit_mse`` is the mean over samples and classes of the squared error of
    the logits, each sample's own mean taken from them first, since what all classes share changes no answer.

    Raises ModelError if the network gives no logits of one class a column, or if they hold NaN.
    """
    if logits.ndim != 2:
        raise ModelError(
            f"the network gives {tuple(logits.shape[1:])} per sample; logits, one per class, are needed to score it"
        )
    if int(labels.max()) >= logits.shape[1]:
        raise ModelError(f"a label is {int(labels.max())}, but the network has {logits.shape[1]} classes")
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the network gives NaN or infinite logits; check the weights and the data")
    logits, reference = logits.double(), reference.double()
    error = logits - reference
    log_q, log_p = logits.log_softmax(1), reference.log_softmax(1)
    return Scores(
        accuracy=float((logits.argmax(1) == labels).double().mean()),
        loss=float(F.nll_loss(log_q, labels)),
        kl=float((log_p.exp() * (log_p - log_q)).sum(1).mean()),
        logit_mse=float((error - error.mean(1, keepdim=True)).square().mean()),
        samples=len(labels),
    )
