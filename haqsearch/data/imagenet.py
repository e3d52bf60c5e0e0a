"""Photographs in folders named by their ImageNet class: NNN/*.jpg, NNN the class index 000 .. 999."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from haqsearch.data.dataset import DataSet, find_folder
from haqsearch.errors import DataError

FOLDER = "imagenet-compat"
SIZE = 224
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def load(data_root: list[Path]) -> DataSet:
    """DataSet of 500 photographs (3, 224, 224), normalised as ImageNet's (NIPS-2017 competition set, CC BY 2.0).

    There is no test part: the report split is cut from them. The order is that of the file names without their folder, so that
    neighbours are of different classes. Raises DataError if the folder is missing or holds anything but such photographs.
    """
    folder = find_folder("imagenet_compat500 is not there", FOLDER, data_root)
    files = sorted(folder.glob("*/*.jpg"), key=lambda path: (path.name, path.parent.name))
    if not files:
        raise DataError(f"imagenet_compat500: {folder} holds no photographs NNN/*.jpg; unpack it again")
    labels = [_label(path.parent.name, folder) for path in files]
    return DataSet("imagenet_compat500", torch.stack([_read(path) for path in files]), torch.tensor(labels))


def _label(name: str, folder: Path) -> int:
    if len(name) != 3 or not name.isdecimal():
        raise DataError(f"imagenet_compat500: the folder {folder / name} is not named by a class index 000 .. 999")
    return int(name)


def _read(path: Path) -> Tensor:
    """A photograph (3, SIZE, SIZE), normalised."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise DataError(f"imagenet_compat500: {path} is not a readable photograph ({error}); unpack it again") from None
    if pixels.shape != (SIZE, SIZE, 3):
        raise DataError(
            f"imagenet_compat500: {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, not {SIZE} x {SIZE}"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).sub_(_MEAN).div_(_STD)
