"""What a program takes in memory, read off its instructions."""

from __future__ import annotations

from math import prod

from haqsearch.graph.plan import STREAM
from haqsearch.kernels.arena import Lifetime, busiest
from haqsearch.runtime.program import IntegerProgram


def peak_activation_bytes(program: IntegerProgram) -> int:
    """Largest sum of the values alive at one node, for one sample, each densely packed in its format.

    A value that is kept as the residual stream is that one buffer: where a layer wants it narrower it is narrowed as it is
    read. A reshape is its input's buffer. The float input is the caller's unless a float region reads it. This is what
    ``hwmodels.memory`` predicts from the graph alone, before there is a program.
    """
    holder = _holders(program)
    step = {node: i for i, node in enumerate(dict.fromkeys(_node(name) for name in program.tensors))}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for instruction in program.instructions:
        now = step[_node(instruction.outputs[0])]
        for name in instruction.outputs:
            first.setdefault(holder[name], now)
            last[holder[name]] = max(last.get(holder[name], 0), now)
        for name in instruction.inputs:
            if name in holder:
                last[holder[name]] = max(last.get(holder[name], 0), now)
                first.setdefault(holder[name], step[_node(name)])
    last[holder[program.output]] = len(step)
    return busiest([Lifetime(_bytes(program, name), first[name], last[name]) for name in first])


def _node(name: str) -> str:
    return name.partition(":")[0]


def _bytes(program: IntegerProgram, name: str) -> int:
    info = program.tensors[name]
    return -(-prod(info.shape or ()) * info.format.width // 8)


def _holders(program: IntegerProgram) -> dict[str, str]:
    """Value -> the value whose buffer it is, or is read from."""
    holder: dict[str, str] = {}
    if any(program.input in i.inputs and i.op == "float" for i in program.instructions):
        holder[program.input] = program.input
    for instruction in program.instructions:
        for name in instruction.outputs:
            stream = f"{_node(name)}:{STREAM}"
            narrowed = (
                stream in program.tensors and name != program.output and not program.tensors[name].format.is_float
            )
            if instruction.op == "reshape" or instruction.op == "minimum":
                holder[name] = holder[instruction.inputs[0]]
            else:
                holder[name] = stream if narrowed else name
    return holder
