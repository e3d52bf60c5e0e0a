"""Train a float network from nothing: for small data sets, where a recipe names no weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from haqsearch.data import Splits
from haqsearch.errors import DataError


def train_float(
    build: Callable[[], nn.Module], splits: Splits, epochs: int, batch: int, learning_rate: float, seed: int
) -> nn.Module:
    """A network of ``build`` trained on the training split by Adam with a cosine schedule, in eval mode.

    Cross-entropy, augmented samples. The same seed and number of threads give the same network; torch's global random
    state is left as it was. Raises DataError if the loss stops being finite.
    """
    inputs, labels = splits.train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs), generator=generator).split(batch):
            if len(chosen) < 2:
                continue  # batch norm has no variance over one sample
            samples = inputs[chosen]
            if splits.augment is not None:
                samples = splits.augment(samples, generator)
            loss = F.cross_entropy(model(samples), labels[chosen])
            if not bool(torch.isfinite(loss)):
                raise DataError(f"training diverged; lower train.learning_rate ({learning_rate})")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()
