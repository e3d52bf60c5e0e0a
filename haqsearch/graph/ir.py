"""The graph: nodes of a closed set of operations over one input, in execution order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

LAYER_OPS = frozenset({"conv2d", "linear"})
"""Operations with weights that can be computed in integers."""

MOVES = frozenset({"reshape", "slice", "pad", "max_pool2d"})
"""Operations that only move or select codes: what they give has the format and the scale of what they take."""

ARITHMETIC = frozenset({"input", "add", "avg_pool2d", "concat", "clamp", "float"}) | LAYER_OPS
"""Operations that compute new values, hence choose how to quantize them."""


@dataclass(frozen=True)
class Node:
    """One operation. ``shape`` is without the batch dimension; None where the value is not a batch (float regions only).

    attributes, by op:
      conv2d      stride, padding (two ints each), dilation, groups
      avg_pool2d  kernel, stride, padding;   max_pool2d  kernel, stride, padding, dilation
      slice       dim, start, end, step;     pad  amounts (as F.pad);   concat  dim (counted with the batch)
      clamp       low, high (None: open);    reshape  none: ``shape`` says it
      float       target (an operator's name), arguments (a template, see execute.py)
    Every arithmetic op may carry ``clamp`` = (low, high): an activation fused behind it. Each is None, a number, or, behind a
    layer, ``high`` may be a tuple of one number for each output channel (see ptq/equalize.py).
    ``weight`` and ``bias`` are keys of ``Graph.parameters``.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...] | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    weight: str = ""
    bias: str = ""

    @property
    def parameters(self) -> set[str]:
        """Keys of every parameter this node reads."""
        keys = {key for key in (self.weight, self.bias, *self.attributes.get("affine", ())) if key}
        todo = [self.attributes.get("arguments"), self.attributes.get("keywords")]
        while todo:
            item = todo.pop()
            if isinstance(item, dict):
                keys |= {item["parameter"]} if "parameter" in item else set()
                todo.extend(item.values())
            elif isinstance(item, list | tuple):
                todo.extend(item)
        return keys

    def renamed(self, alias: Mapping[str, str]) -> Node:
        """This node reading other values: ``alias`` maps old names to new ones."""
        attributes = dict(self.attributes)
        for key in {"arguments", "keywords"} & attributes.keys():
            attributes[key] = _renamed(attributes[key], alias)
        return self.with_(inputs=tuple(alias.get(name, name) for name in self.inputs), attributes=attributes)

    def with_(self, **changes: Any) -> Node:
        return replace(self, **changes)

    def with_attributes(self, **attributes: Any) -> Node:
        return replace(self, attributes={**self.attributes, **attributes})


def _renamed(template: Any, alias: Mapping[str, str]) -> Any:
    if isinstance(template, list):
        return [_renamed(item, alias) for item in template]
    if not isinstance(template, dict):
        return template
    if "node" in template:
        return {"node": alias.get(template["node"], template["node"])}
    return {key: _renamed(value, alias) for key, value in template.items()}


@dataclass(frozen=True)
class Graph:
    """A network: ``nodes`` in execution order (the first is the input), the name of the output node, parameters by name."""

    name: str
    nodes: tuple[Node, ...]
    output: str
    parameters: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {node.name: node for node in self.nodes})

    def __getitem__(self, name: str) -> Node:
        return self._index[name]  # type: ignore[attr-defined]

    @property
    def input(self) -> Node:
        return self.nodes[0]

    @property
    def layers(self) -> tuple[Node, ...]:
        """Nodes with weights that can be quantized."""
        return tuple(node for node in self.nodes if node.op in LAYER_OPS)

    @property
    def users(self) -> dict[str, list[Node]]:
        """Nodes that read each node's value, in order."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    def source(self, name: str) -> Node:
        """The arithmetic node whose value ``name`` is, seen through nodes that only move codes."""
        node = self[name]
        while node.op in MOVES:
            node = self[node.inputs[0]]
        return node

    def replace(
        self, nodes: Iterable[Node], parameters: Mapping[str, Tensor] | None = None, output: str | None = None
    ) -> Graph:
        return Graph(
            self.name, tuple(nodes), output or self.output, self.parameters if parameters is None else parameters
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the operations and every parameter's bytes."""
        content = hashlib.sha256()
        for node in self.nodes:
            content.update(
                repr((node.name, node.op, node.inputs, node.shape, sorted(node.attributes.items(), key=str))).encode()
            )
        for name in sorted(self.parameters):
            tensor = self.parameters[name].detach().contiguous().cpu()
            content.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()[:16]
