"""What a calculated sensitivity is, and how its table is kept.

A measure's figures are means over calibration samples, summed batch by batch. The sums are on disk after every batch, so a killed
process loses one batch at most, and what it goes on to find is what it would have found undisturbed, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from haqsearch.data import Splits
from haqsearch.errors import SearchError
from haqsearch.evaluate.cache import code_digest
from haqsearch.evaluate.prepared import Prepared
from haqsearch.files import write_json_atomic
from haqsearch.graph import Node
from haqsearch.graph.apply import fake_quantize
from haqsearch.graph.plan import STREAM
from haqsearch.spec import Format, SearchSpace, Sensitivity, Variable

_ELEMENTS = 2**23  # values of all nodes that one batch may have: 32 MB of float32


class Measure(ABC):
    """Errors of every variable at every candidate, on the float network and the quantizers that policies are lowered with.

    name     by which recipes and tables call it;   samples  calibration samples that it looks at, at most
    version  of the method: a table of another one is calculated anew
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    samples: ClassVar[int] = 256
    largest_batch: ClassVar[int] = 32

    def __init__(self, prepared: Prepared, space: SearchSpace) -> None:
        self.prepared, self.space, self.graph = prepared, space, prepared.graph
        self.nodes = {node.layer: node for node in self.graph.layers}

    @abstractmethod
    def figures(self, number: int, inputs: Tensor, labels: Tensor) -> Mapping[str, Sequence[float]]:
        """By variable, means over the samples of batch ``number``: ``inputs`` (B, ...), ``labels`` (B,)."""

    @abstractmethod
    def errors(self, variable: Variable, means: Sequence[float]) -> list[float]:
        """Error of each candidate of ``variable``, at least 0, from the means over all samples of its ``figures``."""

    @property
    def batch(self) -> int:
        """Samples a step."""
        values = sum(torch.Size(node.shape or ()).numel() for node in self.graph.nodes)
        return min(max(_ELEMENTS // max(values, 1), 1), self.largest_batch)

    # -- what measures share --------------------------------------------------------------------------------------

    def value_of(self, variable: Variable) -> Node:
        """The node whose value an activation variable quantizes."""
        return self.graph.source(self.nodes[variable.layers[0]].inputs[0])

    def weight_change(self, layer: str, format: Format) -> Tensor:
        """What ``format`` makes of the weights of ``layer``, less what they are."""
        node = self.nodes[layer]
        return self.prepared.weight(layer, format).dequantize() - self.graph.parameters[node.weight].detach()

    def narrowed(self, node: Node, x: Tensor, format: Format) -> Tensor:
        """Value ``x`` of ``node`` as layers read it in ``format``: through the residual stream, where it is kept there too."""
        twice = "stream" in self.prepared.plan.slots[node.name] and node.op not in {"input", "float"}
        whole = fake_quantize(x, self.prepared.ranges.params(node.name, STREAM)) if twice else x
        return fake_quantize(whole, self.prepared.ranges.params(node.name, format))


class Calculated:
    """The table of ``measure``, kept in ``folder``/MEASURE-DIGEST.json, if there is a folder."""

    def __init__(
        self, measure: type[Measure], prepared: Prepared, splits: Splits, space: SearchSpace, folder: Path | None = None
    ) -> None:
        self.measure, self.prepared, self.space = measure, prepared, space
        self.inputs, self.labels = (part[: measure.samples] for part in splits.calibrate)
        what = f"{measure.name} {measure.version}"
        digest = digest_of(prepared, space, what, (splits.calibrate[0], self.labels))
        self.file = folder / f"{measure.name}-{digest}.json" if folder else None

    def table(self, on_step: Callable[[int, int], None] = lambda done, whole: None) -> Sensitivity:
        """The table, calculated as far as it is not on disk. ``on_step`` hears of samples done and their number.

        Raises SearchError if a figure is not finite; what the measure raises.
        """
        sums, done = self._read()
        measure = self.measure(self.prepared, self.space)
        while done < len(self.inputs):
            part = slice(done, done + measure.batch)
            inputs, labels = self.inputs[part], self.labels[part]
            for name, values in measure.figures(done // measure.batch, inputs, labels).items():
                known = sums.get(name, [0.0] * len(values))
                sums[name] = [a + len(inputs) * b for a, b in zip(known, values, strict=True)]
            done += len(inputs)
            if self.file:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(self.file, {"samples": done, "sums": sums})
            on_step(done, len(self.inputs))
        return self._tabulated(measure, sums, done)

    def kept(self) -> Sensitivity | None:
        """The table, if all of it lies on disk; None otherwise."""
        sums, done = self._read()
        return (
            self._tabulated(self.measure(self.prepared, self.space), sums, done) if done == len(self.inputs) else None
        )

    def _read(self) -> tuple[dict[str, list[float]], int]:
        if not (self.file and self.file.is_file()):
            return {}, 0
        content = json.loads(self.file.read_text(encoding="utf-8"))
        return content["sums"], content["samples"]

    def _tabulated(self, measure: Measure, sums: Mapping[str, Sequence[float]], samples: int) -> Sensitivity:
        errors = {v.name: measure.errors(v, [s / samples for s in sums[v.name]]) for v in self.space.variables}
        for name, values in errors.items():
            if not bool(torch.isfinite(torch.tensor(values)).all()):
                raise SearchError(f"sensitivity by {measure.name}: {name} has {values}; check the weights and the data")
        return Sensitivity(
            measure.name,
            sum(values[-1] for values in errors.values()),
            {name: tuple(value - values[-1] for value in values) for name, values in errors.items()},
            {v.name: tuple(map(str, v.candidates)) for v in self.space.variables},
        )


def digest_of(prepared: Prepared, space: SearchSpace, what: Any, tensors: Iterable[Tensor]) -> str:
    """Digest of all that a table depends on: the code of the numerics, network, quantization, candidates, ``what``, data."""
    steps = getattr(getattr(prepared.weight, "pipeline", None), "steps", "")
    names = [(v.name, *map(str, v.candidates)) for v in space.variables]
    content = hashlib.sha256(
        f"{code_digest()} {torch.__version__} {prepared.graph.digest} {steps} {names} {what}".encode()
    )
    for tensor in tensors:
        content.update(str(tuple(tensor.shape)).encode())
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
