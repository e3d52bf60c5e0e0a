"""What a data set is, and how it is cut so that no number is reported on data that was used to get it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from haqsearch.errors import DataError

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class DataSet:
    """Inputs as the network takes them, with integer labels.

    inputs   float32 (N, ...), normalised;  labels  int64 (N,)
    test_inputs, test_labels   the set's own test part; None: the report split is cut from ``inputs``
    augment  (inputs (B, ...), generator) -> inputs, used in training only
    """

    name: str
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor | None = None
    test_labels: Tensor | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if (self.test_inputs is None) != (self.test_labels is None):
            raise DataError(f"data set {self.name}: test_inputs and test_labels come together, or not at all")
        parts = [("inputs", self.inputs, self.labels)]
        if self.test_inputs is not None and self.test_labels is not None:
            parts.append(("test_inputs", self.test_inputs, self.test_labels))
        for name, inputs, labels in parts:
            if len(inputs) == 0:
                raise DataError(f"data set {self.name}: {name} is empty")
            if len(inputs) != len(labels):
                raise DataError(f"data set {self.name}: {len(inputs)} {name}, but {len(labels)} labels")
            if inputs.dtype != torch.float32 or labels.dtype != torch.int64:
                raise DataError(
                    f"data set {self.name}: {name} must be float32 with int64 labels, not {inputs.dtype}, {labels.dtype}"
                )
            if not bool(
                torch.isfinite(torch.stack(torch.aminmax(inputs))).all()
            ):  # NaN is passed on; no copy of all of it
                raise DataError(f"data set {self.name}: {name} hold NaN or infinity")


def find_folder(what: str, name: str, data_root: Sequence[Path]) -> Path:
    """The first folder called ``name`` under the data roots; DataError, beginning with ``what``, if there is none."""
    found = [root / name for root in data_root if (root / name).is_dir()]
    if not found:
        looked = ", ".join(str(root) for root in data_root) or "nowhere"
        raise DataError(
            f"{what}: no folder {name} in {looked}; put it there, or name the folder that holds it by --data-root or "
            "HAQSEARCH_DATA"
        )
    return found[0]


@dataclass(frozen=True)
class Splits:
    """``train`` and ``calibrate`` (its first samples) / ``search`` / ``report``: (inputs, labels), pairwise disjoint."""

    train: tuple[Tensor, Tensor]
    calibrate: tuple[Tensor, Tensor]
    search: tuple[Tensor, Tensor]
    report: tuple[Tensor, Tensor]
    augment: Augment | None = None


def split(data: DataSet, calibrate: int, search: int, report: int | None, seed: int) -> Splits:
    """Cut ``data`` by a shuffle fixed by ``seed``: search first, then (without a test part) report, the rest is for training.

    ``report`` None: the whole test part, or a quarter of the samples. Raises DataError if a split would be empty or too large.
    """
    order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(seed))
    test = (
        (data.test_inputs, data.test_labels) if data.test_inputs is not None and data.test_labels is not None else None
    )
    if report is None:
        report = len(order) // 4 if test is None else len(test[0])
    sizes = {"calibrate": calibrate, "search": search, "report": report}
    for name, size in sizes.items():
        if size < 1:
            raise DataError(f"split.{name} is {size}: every split needs at least one sample")
    needed = calibrate + search + (report if test is None else 0)
    if needed > len(order):
        raise DataError(
            f"data set {data.name} has {len(order)} samples, the splits ask for {needed}: make them smaller"
        )
    if test is not None and report > len(test[0]):
        raise DataError(f"data set {data.name} has {len(test[0])} test samples, split.report asks for {report}")
    cuts = [search, report] if test is None else [search]
    parts = torch.split(order, [*cuts, len(order) - sum(cuts)])

    def take(indices: Tensor) -> tuple[Tensor, Tensor]:
        return data.inputs[indices], data.labels[indices]

    train = take(parts[-1])
    reported = take(parts[1]) if test is None else (test[0][:report], test[1][:report])
    return Splits(train, (train[0][:calibrate], train[1][:calibrate]), take(parts[0]), reported, data.augment)
