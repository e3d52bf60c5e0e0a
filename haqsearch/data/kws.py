"""Keyword spotting windows: NumPy arrays of MFCC features, as MLPerf Tiny's keyword-spotting benchmark takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from haqsearch.data.dataset import DataSet, find_folder
from haqsearch.errors import DataError

FOLDER = "kws01"
SHAPE = (1, 49, 10)
CLASSES = 12


def load(data_root: list[Path]) -> DataSet:
    """DataSet of windows (1, 49, 10) of 49 frames of ten MFCC features, twelve classes, from ``kws01/x.npy`` and ``y.npy``.

    There is no test part: the report split is cut from them. Raises DataError if a file is missing, damaged or something else.
    """
    folder = find_folder("kws01 is not there", FOLDER, data_root)
    inputs, labels = (_read(folder / name) for name in ("x.npy", "y.npy"))
    if inputs.ndim != 1 + len(SHAPE) or inputs.shape[1:] != SHAPE or labels.shape != inputs.shape[:1]:
        raise DataError(
            f"kws01: {folder} holds windows of shape {inputs.shape} and labels of shape {labels.shape}; expected (N, 1, 49, 10) "
            "and (N,)"
        )
    if labels.dtype.kind not in "iu" or (labels.size and not 0 <= labels.min() <= labels.max() < CLASSES):
        raise DataError(f"kws01: {folder / 'y.npy'} holds labels that are no integers 0 .. {CLASSES - 1}")
    return DataSet("kws01", torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"kws01: {path} is missing")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"kws01: {path} is not a readable .npy array ({error}); write it again") from None
