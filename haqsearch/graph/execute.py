"""Run a graph in float, node by node.

A ``float`` node keeps its operator by name and its arguments as a template of plain JSON values, in which
``{"node": n}`` is the value of node n, ``{"parameter": p}`` a parameter, ``{"list": [...]}`` a list, ``{"dtype": d}``,
``{"layout": l}``, ``{"memory_format": m}`` and ``{"device": d}`` what they say. So a graph can be written to a file, and
nothing but torch's own operators is ever called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from haqsearch.errors import ModelError
from haqsearch.graph.ir import Graph, Node

_SCALAR_OPERATORS = {"add", "sub", "mul", "floordiv", "truediv", "neg", "getitem", "eq", "ge", "gt", "le", "lt", "ne"}


def resolve(target: str) -> Callable[..., Any]:
    """Operator called ``aten.NAME.OVERLOAD`` or ``operator.NAME``. Raises ModelError for anything else."""
    parts = target.split(".")
    if parts[0] == "operator" and len(parts) == 2 and parts[1] in _SCALAR_OPERATORS:
        return getattr(operator, parts[1])
    if parts[0] == "aten" and len(parts) == 3:
        return getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    raise ModelError(f"operator {target!r} is none of torch's own")


def fill(template: Any, values: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Any:
    """Arguments of a float node with the values put in."""
    if isinstance(template, list | tuple):
        return [fill(item, values, parameters) for item in template]
    if not isinstance(template, dict):
        return template
    (kind, content), *_ = template.items()
    match kind:
        case "node":
            return values[content]
        case "parameter":
            return parameters[content]
        case "list":
            return [fill(item, values, parameters) for item in content]
        case "dtype" | "layout" | "memory_format":
            return getattr(torch, content)
        case "device":
            return torch.device(content)
    raise ModelError(f"unknown argument {template!r} of a float operation")


def call_float(node: Node, values: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Any:
    """Value of a ``float`` node."""
    arguments, keywords = node.attributes["arguments"], node.attributes["keywords"]
    filled = {key: fill(value, values, parameters) for key, value in keywords.items()}
    return resolve(node.attributes["target"])(*fill(arguments, values, parameters), **filled)


def compute(node: Node, inputs: list[Any], weight: Any = None, bias: Any = None) -> Any:
    """Value of any node but ``input`` and ``float``, from its inputs (with the batch dimension), in float."""
    at = node.attributes
    x = inputs[0]
    match node.op:
        case "conv2d":
            y = F.conv2d(x, weight, bias, at["stride"], at["padding"], at["dilation"], at["groups"])
        case "linear":
            y = F.linear(x, weight, bias)
        case "add":
            y = inputs[0] + inputs[1]
        case "concat":
            y = torch.cat(inputs, at["dim"])
        case "avg_pool2d":
            y = F.avg_pool2d(x, at["kernel"], at["stride"], at["padding"])
        case "max_pool2d":
            y = F.max_pool2d(x, at["kernel"], at["stride"], at["padding"], at["dilation"])
        case "reshape":
            y = x.reshape(x.shape[0], *node.shape or ())
        case "slice":
            y = x[(slice(None),) * at["dim"] + (slice(at["start"], at["end"], at["step"]),)]
        case "pad":
            y = F.pad(x, at["amounts"])
        case "clamp":
            y = torch.clamp(x, at["low"], at["high"])
        case _:
            raise ModelError(f"{node.name}: unknown operation {node.op!r}")
    if at.get("clamp"):
        y = _clamped(y, *at["clamp"])
    return y


def _clamped(y: Tensor, low: float | None, high: float | tuple[float, ...] | None) -> Tensor:
    """``y`` clamped; ``high`` may be a bound for each channel (dim 1)."""
    if not isinstance(high, tuple):
        return torch.clamp(y, low, high)
    bounds = torch.tensor(high, dtype=y.dtype, device=y.device).reshape(-1, *[1] * (y.ndim - 2))
    return torch.minimum(y if low is None else y.clamp(min=low), bounds)


def run_float(graph: Graph, x: Tensor, observe: Callable[[Node, Tensor], None] | None = None) -> Tensor:
    """Output of the float network on ``x`` (B, *input shape); ``observe`` is called with every node and its value."""
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "input":
            value = x
        elif node.op == "float":
            value = call_float(node, values, graph.parameters)
        else:
            weight = graph.parameters[node.weight] if node.weight else None
            bias = graph.parameters[node.bias] if node.bias else None
            value = compute(node, [values[name] for name in node.inputs], weight, bias)
        values[node.name] = value
        if observe is not None:
            observe(node, value)
    return values[graph.output]
