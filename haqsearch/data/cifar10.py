"""CIFAR-10 from its standard binary files [Krizhevsky 2009]: 50,000 training and 10,000 test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from haqsearch.data.dataset import Augment, DataSet, find_folder
from haqsearch.errors import DataError

FOLDER = "cifar-10-batches-bin"
_RECORD = 1 + 3 * 32 * 32  # one label byte, then 32 x 32 red, green and blue bytes
# The statistics the public ResNet checkpoints were trained with (ImageNet's).
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def load(data_root: list[Path]) -> DataSet:
    """DataSet of normalised images (3, 32, 32). Raises DataError if a file is missing or truncated."""
    return _load(data_root, "cifar10", _read, crop_and_flip)


def load_bytes(data_root: list[Path]) -> DataSet:
    """DataSet of images (3, 32, 32) as they are stored, 0 .. 255, as MLPerf Tiny's networks take them. Errors as of ``load``."""
    return _load(data_root, "cifar10_bytes", _read_bytes, crop_and_flip_bytes)


def _load(data_root: list[Path], name: str, read: Callable[[Path], tuple[Tensor, Tensor]], augment: Augment) -> DataSet:
    folder = find_folder("CIFAR-10 is not there", FOLDER, data_root)
    train = [read(folder / f"data_batch_{k}.bin") for k in range(1, 6)]
    test = read(folder / "test_batch.bin")
    inputs = torch.cat([images for images, _ in train])
    return DataSet(name, inputs, torch.cat([labels for _, labels in train]), *test, augment=augment)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    images, labels = _read_bytes(path)
    return images.div_(255).sub_(_MEAN).div_(_STD), labels


def _read_bytes(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise DataError(f"CIFAR-10: {path} is missing")
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size == 0 or raw.size % _RECORD:
        raise DataError(
            f"CIFAR-10: {path} is truncated: {raw.size} bytes are no multiple of {_RECORD}; unpack it again"
        )
    records = torch.from_numpy(raw).view(-1, _RECORD)
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise DataError(f"CIFAR-10: {path} holds a label above 9; is it the binary version of CIFAR-10?")
    return records[:, 1:].reshape(-1, 3, 32, 32).float(), labels


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random 32 x 32 crop of the image padded by 4 (with black), flipped left to right half of the time."""
    black = (-_MEAN / _STD).expand(len(images), -1, 1, 1)
    return crop_and_flip_bytes(images - black, generator).add_(black)


def crop_and_flip_bytes(images: Tensor, generator: torch.Generator) -> Tensor:
    """``crop_and_flip`` of images in which black is 0."""
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    moves = torch.randint(0, 9, (len(images), 2), generator=generator)
    rows = moves[:, :1] + torch.arange(32)
    columns = moves[:, 1:] + torch.arange(32)
    flipped = torch.rand(len(images), 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    batch = torch.arange(len(images))
    return padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
