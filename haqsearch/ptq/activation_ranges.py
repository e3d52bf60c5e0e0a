"""Ranges of narrow activations by the error of what reads them.

The range of least squared error treats every value alike. What matters is what it does to the layers that read it: with few bits
they suffer more from large values cut off than from small ones rounded, and channels that meet large weights count more.
So the scale is a multiple of the one of least squared error, the one that changes the readers' outputs least:

    argmin over f of  sum over readers of E[(W (q_f(x) - x))**2]

over calibration inputs of the float network. It depends on the value and the format alone, so a policy still costs one
forward pass. Factors are few, as the error is flat around its least.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from haqsearch.files import write_json_atomic
from haqsearch.graph import Graph, Node, run_float
from haqsearch.graph.apply import fake_quantize
from haqsearch.graph.execute import compute
from haqsearch.graph.plan import STREAM
from haqsearch.graph.ranges import CalibratedRanges
from haqsearch.spec import Format

VERSION = 1
"""Of the method: factors kept by another version are found again."""

FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)
_IMAGES = 256  # more do not move the choice
_BATCH = 64


class OutputErrorFactors:
    """(value, format) -> what to multiply the scale of least squared error by; 1 from the stream's width on.

    A format asked for the first time costs one float pass over at most 256 of ``inputs`` (N, ...), for all values at once. It
    is kept in ``folder``, if there is one; that belongs to this network and these inputs. ``formats``: the one format in which
    values are going to be asked for, where that is known: chosen for all of these in one pass, and nothing else is looked at.
    """

    def __init__(
        self,
        graph: Graph,
        ranges: CalibratedRanges,
        inputs: Tensor,
        folder: Path | None = None,
        formats: Mapping[str, Format] | None = None,
    ) -> None:
        self.graph, self.ranges, self.inputs, self.folder = graph, ranges, inputs[:_IMAGES], folder
        self.paths = {value: _paths(graph, value) for value in ranges.plan.owner}
        self.formats = {value: format for value, format in (formats or {}).items() if self._is_narrow(value, format)}
        self.found: dict[tuple[str, Format], float] = {}

    def __call__(self, value: str, format: Format) -> float:
        if not self._is_narrow(value, format):
            return 1.0
        if (value, format) not in self.found:
            together = self.formats if self.formats.get(value) == format else dict.fromkeys(self.paths, format)
            chosen = self._kept(format) if self.folder else self._choose(together)
            self.found.update({(name, together[name]): factor for name, factor in chosen.items()})
        return self.found[value, format]

    def _is_narrow(self, value: str, format: Format) -> bool:
        return not format.is_float and format.width < STREAM.width and value in self.paths

    def _kept(self, format: Format) -> dict[str, float]:
        """Of all values, from the folder, or into it."""
        assert self.folder is not None
        file = self.folder / f"ranges-{VERSION}-{format}.json"
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        found = self._choose(dict.fromkeys(self.paths, format))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, found)
        return found

    def _choose(self, formats: Mapping[str, Format]) -> dict[str, float]:
        """Of every value in its format."""
        errors = {value: torch.zeros(len(FACTORS), dtype=torch.float64) for value in formats}

        def observe(node: Node, x: Tensor) -> None:
            if node.name in errors:
                errors[node.name] += self._errors(node, x, formats[node.name])

        with torch.no_grad():
            for batch in self.inputs.split(_BATCH):
                run_float(self.graph, batch, observe)
        return {value: FACTORS[int(sums.argmin())] for value, sums in errors.items()}

    def _errors(self, node: Node, x: Tensor, format: Format) -> Tensor:
        """Sum of squared changes (factors,) of all that reads ``node``, whose float value is ``x``."""
        twice = "stream" in self.ranges.plan.slots[node.name] and node.op not in {"input", "float"}
        whole = fake_quantize(x, self.ranges.params(node.name, STREAM)) if twice else x
        found = torch.zeros(len(FACTORS), dtype=torch.float64)
        for i, factor in enumerate(FACTORS):
            change = fake_quantize(whole, self.ranges.placed(node.name, format, factor)) - x
            for path in self.paths[node.name]:
                found[i] += _through(self.graph, path, change).square().sum(dtype=torch.float64)
        return found


def _paths(graph: Graph, value: str) -> list[list[Node]]:
    """For every layer that reads ``value``, the nodes that lead from there into it, the layer the last."""
    found = []
    for layer in graph.layers:
        if graph.source(layer.inputs[0]).name == value:
            path = [layer]
            while path[0].inputs[0] != value:
                path.insert(0, graph[path[0].inputs[0]])
            found.append(path)
    return found


def _through(graph: Graph, path: list[Node], change: Tensor) -> Tensor:
    """What a change of the value does to the layer's output, the activation fused behind it aside. Moves are linear but for
    max pooling, which is taken as if it were."""
    for node in path:
        weight = graph.parameters[node.weight] if node.weight else None
        change = compute(node.with_attributes(clamp=None), [change], weight)
    return change
