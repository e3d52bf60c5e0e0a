"""scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits): real, and always at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from haqsearch.data.dataset import DataSet


def load(data_root: list[Path]) -> DataSet:
    """DataSet of 1,797 images (1, 8, 8) scaled to about [-1, 1], ten classes. Needs no files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype("float32")).unsqueeze(1) / 8.0 - 1.0
    return DataSet("digits", images, torch.from_numpy(digits.target.astype("int64")), augment=shift)


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to one pixel both ways; the border is background (-1)."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    moves = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = moves[:, :1] + torch.arange(images.shape[2])
    columns = moves[:, 1:] + torch.arange(images.shape[3])
    batch = torch.arange(len(images))
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
