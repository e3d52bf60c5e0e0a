"""Integer weights by layer and format, made once and, if a folder is given, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from haqsearch.files import replacing
from haqsearch.ptq.pipeline import Pipeline
from haqsearch.quant import QWeight
from haqsearch.spec import Format

_BATCH = 128
_PARTS = ("codes", "scale", "bias_correction", "step")  # of a QWeight, of which the last two may be missing


class WeightBank:
    """What a layer's weights are in a format: called with (layer, format), it gives a QWeight, made by ``pipeline``.

    inputs     calibration inputs (N, ...), which the pipeline's statistics are of
    folder     where ``prepare`` keeps weights whose rounding takes long, one file a format; found there again as long as the
               network, the inputs and the method are the same
    """

    def __init__(self, pipeline: Pipeline, inputs: Tensor, folder: Path | None = None) -> None:
        self.pipeline, self.inputs = pipeline, inputs
        self.made: dict[tuple[str, Format], QWeight] = {}
        self.folder = folder / "ptq" / self._digest if folder and pipeline.is_slow else None
        for file in sorted(self.folder.glob("*.safetensors")) if self.folder and self.folder.is_dir() else ():
            self.made.update(_read(file))

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(
            f"{self.pipeline.version} {self.pipeline.graph.digest} {tuple(self.inputs.shape)}".encode()
        )
        content.update(self.inputs.contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def __call__(self, layer: str, format: Format) -> QWeight:
        """Integer weights of ``layer`` in ``format``. Raises DataError if the weights are not finite."""
        key = (layer, format)
        if key not in self.made:
            if self.pipeline.needs_data:
                self.pipeline.collect(self.inputs.split(_BATCH))
            self.made[key] = self.pipeline.weight(layer, format)
        return self.made[key]

    def prepare(self, pairs: Iterable[tuple[str, Format]], say: Callable[[str], None] = lambda text: None) -> None:
        """Make the weights of every (layer, format) now, and keep them: a killed process loses one format at most."""
        if self.folder is None:
            return
        formats: dict[Format, list[str]] = {}
        for layer, format in pairs:
            if (layer, format) not in self.made:
                formats.setdefault(format, []).append(layer)
        for format, layers in sorted(formats.items()):
            say(f"rounding the weights of {len(layers)} layers to {format}")
            for layer in layers:
                self(layer, format)
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / f"{format}.safetensors", {k: w for k, w in self.made.items() if k[1] == format})


def _write(file: Path, weights: Mapping[tuple[str, Format], QWeight]) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for (layer, format), weight in weights.items():
        for part in _PARTS:
            if (tensor := getattr(weight, part)) is not None:
                tensors[f"{part}/{format}/{layer}"] = tensor
    with replacing(file) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(temporary))


def _read(file: Path) -> dict[tuple[str, Format], QWeight]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(str(file))
    found = {}
    for key in tensors:
        kind, format, layer = key.split("/", 2)
        if kind == "codes":
            parts: dict[str, Any] = {part: tensors.get(f"{part}/{format}/{layer}") for part in _PARTS}
            found[layer, Format.parse(format)] = QWeight(Format.parse(format), **parts)
    return found
