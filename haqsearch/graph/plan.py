"""Which tensors are kept in which formats.

A value that feeds layers and also a residual add is kept twice: in the layers' format, and in the 8-bit residual stream
(design: the stream must not lose what a narrow layer does not need). Each such copy is a *slot* of the value:

  layers   read by quantized layers; all of them share its format (a tie)
  stream   read by adds, pools, concatenations and float regions; always STREAM
  float    kept in float32 between two operations of a float region
  output   what the network gives; OUTPUT
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from haqsearch.graph.ir import LAYER_OPS, MOVES, Graph, Node
from haqsearch.spec import FLOAT32, Format, Policy

STREAM = Format("uint", 8)
OUTPUT = Format("int", 16)
"""Logits keep 16 bits: ranking policies by loss or KL needs more steps than 8 bits have."""


@dataclass(frozen=True)
class Plan:
    """Slots of every node, in a fixed order, and the layer whose policy entry sets the ``layers`` format of a value."""

    graph: Graph
    slots: Mapping[str, tuple[str, ...]]
    owner: Mapping[str, str]
    readers: Mapping[str, tuple[str, ...]]

    def slot(self, reader: Node, name: str) -> str:
        """Slot in which ``reader`` takes the value of node ``name``."""
        if reader.op in LAYER_OPS:
            return "layers"
        if reader.op == "float" and self.graph.source(name).op in {"float", "input"}:
            return "float"
        return "stream"

    def format(self, name: str, slot: str, policy: Policy) -> Format:
        """Format of one slot of node ``name`` under ``policy``."""
        if slot == "layers":
            return policy[self.owner[self.graph.source(name).name]].activation
        return {"stream": STREAM, "output": OUTPUT, "float": FLOAT32}[slot]


def make_plan(graph: Graph) -> Plan:
    """Plan of a prepared graph; it depends on no policy."""
    plan = Plan(graph, {}, {}, {})
    users = graph.users
    slots: dict[str, set[str]] = {}
    readers: dict[str, list[str]] = {}
    for node in reversed(graph.nodes):
        wanted: set[str] = set()
        for user in users[node.name]:
            wanted |= slots[user.name] if user.op in MOVES else {plan.slot(user, node.name)}
        if node.name == graph.output:
            wanted.add("float" if graph.source(node.name).op == "float" else "output")
        slots[node.name] = wanted
    for node in graph.layers:
        readers.setdefault(graph.source(node.inputs[0]).name, []).append(node.layer)
    order = ("layers", "stream", "float", "output")
    return Plan(
        graph,
        {name: tuple(slot for slot in order if slot in wanted) for name, wanted in slots.items()},
        {value: layers[0] for value, layers in readers.items()},
        {value: tuple(layers) for value, layers in readers.items()},
    )
