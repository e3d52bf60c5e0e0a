"""What an ATen operator is in our graph.

``RULES`` maps an operator to the function that turns its call into a node; supporting another operator is one function
and one line there. A rule is given the tracer, the fx node and the operator's arguments; it returns a node, the name of
a node that holds the same value, or None for a form of the operator that it does not cover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from haqsearch.graph.ir import Node

if TYPE_CHECKING:
    from haqsearch.graph.trace import Tracer


def _two(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * 2 if len(values) == 1 else values


def _conv2d(
    t: Tracer,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node | None:
    if not t.is_value(x) or weight not in t.constants or (bias is not None and bias not in t.constants):
        return None
    kernel = t.constants[weight].shape[2:]
    dilation = _two(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(amount % 2 for amount in total):
            return None
        padding = [amount // 2 for amount in total]
    elif padding == "valid":
        padding = 0
    at = {"stride": _two(stride), "padding": _two(padding), "dilation": dilation, "groups": groups}
    return Node(
        node.name,
        "conv2d",
        (t.ref(x),),
        t.shape(node),
        at,
        t.layer_name(node, weight),
        t.parameter(weight),
        t.parameter(bias),
    )


def _linear(t: Tracer, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Node | None:
    if not t.is_value(x) or weight not in t.constants or (bias is not None and bias not in t.constants):
        return None
    return Node(
        node.name,
        "linear",
        (t.ref(x),),
        t.shape(node),
        {},
        t.layer_name(node, weight),
        t.parameter(weight),
        t.parameter(bias),
    )


def _batch_norm(
    t: Tracer,
    node: fx.Node,
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Node | None:
    """A float node that also says, as ``affine``, the scale and shift it applies to each channel: what folding needs."""
    if not t.is_value(x) or training or mean not in t.constants:
        return None
    variance, centre = t.constants[var].double(), t.constants[mean].double()
    scale = torch.rsqrt(variance + eps) * (1.0 if gamma is None else t.constants[gamma].double())
    shift = -centre * scale + (0.0 if beta is None else t.constants[beta].double())
    made = t.float_node(node)
    scale_key, shift_key = f"{node.name}.scale", f"{node.name}.shift"
    t.parameters[scale_key], t.parameters[shift_key] = scale, shift
    return made.with_attributes(affine=(scale_key, shift_key))


def _clamp(t: Tracer, node: fx.Node, x: Any, low: Any = None, high: Any = None) -> Node | None:
    numbers = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
    if not t.is_value(x) or not numbers:
        return None
    return Node(node.name, "clamp", (t.ref(x),), t.shape(node), {"low": low, "high": high})


def _add(t: Tracer, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Node | None:
    if not t.is_value(a) or not t.is_value(b) or alpha != 1 or t.shape(a) != t.shape(b):
        return None
    return Node(node.name, "add", (t.ref(a), t.ref(b)), t.shape(node))


def _concat(t: Tracer, node: fx.Node, tensors: Any, dim: int = 0) -> Node | None:
    if not all(t.is_value(x) for x in tensors):
        return None
    dim = dim % (len(t.shape(node) or ()) + 1)
    return Node(node.name, "concat", tuple(t.ref(x) for x in tensors), t.shape(node), {"dim": dim}) if dim else None


def _mean(t: Tracer, node: fx.Node, x: Any, dims: Any, keepdim: bool = False, dtype: Any = None) -> Node | None:
    """A mean over both image dimensions is an average pool with one window."""
    shape = t.shape(x) if t.is_value(x) else None
    if shape is None or len(shape) != 3 or sorted(d % 4 for d in _two(dims)) != [2, 3] or dtype is not None:
        return None
    return _global_pool(t, node, x, shape)


def _global_pool(t: Tracer, node: fx.Node, x: fx.Node, shape: tuple[int, ...]) -> Node:
    at = {"kernel": list(shape[1:]), "stride": list(shape[1:]), "padding": [0, 0]}
    pooled = Node(node.name, "avg_pool2d", (t.ref(x),), (shape[0], 1, 1), at)
    if t.shape(node) == pooled.shape:
        return pooled
    t.nodes.append(pooled.with_(name=f"{node.name}_pool"))
    return Node(node.name, "reshape", (f"{node.name}_pool",), t.shape(node))


def _adaptive_avg_pool(t: Tracer, node: fx.Node, x: Any, size: Any) -> Node | None:
    shape = t.shape(x) if t.is_value(x) else None
    return _global_pool(t, node, x, shape) if shape and len(shape) == 3 and _two(size) == [1, 1] else None


def _avg_pool(
    t: Tracer,
    node: fx.Node,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil: bool = False,
    include_pad: bool = True,
    divisor: Any = None,
) -> Node | None:
    plain = not ceil and divisor is None and (include_pad or _two(padding) == [0, 0])
    if not t.is_value(x) or not plain:
        return None
    at = {"kernel": _two(kernel), "stride": _two(stride or kernel), "padding": _two(padding)}
    return Node(node.name, "avg_pool2d", (t.ref(x),), t.shape(node), at)


def _max_pool(
    t: Tracer,
    node: fx.Node,
    x: Any,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> Node | None:
    gaps = (
        max(_two(dilation)) > 1 and max(_two(padding)) > 0
    )  # a window may then hold nothing but padding, minus infinity
    if not t.is_value(x) or ceil or gaps:
        return None
    at = {
        "kernel": _two(kernel),
        "stride": _two(stride or kernel),
        "padding": _two(padding),
        "dilation": _two(dilation),
    }
    return Node(node.name, "max_pool2d", (t.ref(x),), t.shape(node), at)


def _reshape(t: Tracer, node: fx.Node, x: Any, *_: Any, **__: Any) -> Node | None:
    """Any operator that keeps every sample's elements in their order: view, flatten, squeeze, unsqueeze."""
    shape = t.shape(x) if t.is_value(x) else None
    new = t.shape(node)
    if shape is None or new is None or prod(shape) != prod(new):
        return None
    return Node(node.name, "reshape", (t.ref(x),), new)


def _slice(
    t: Tracer, node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Node | str | None:
    shape = t.shape(x) if t.is_value(x) else None
    if shape is None:
        return None
    if t.shape(node) == shape and step == 1:
        return t.ref(x)
    dim = dim % (len(shape) + 1)
    if dim == 0:
        return None
    size = shape[dim - 1]
    first, last, _ = slice(start, end, step).indices(size)
    return Node(node.name, "slice", (t.ref(x),), t.shape(node), {"dim": dim, "start": first, "end": last, "step": step})


def _pad(t: Tracer, node: fx.Node, x: Any, amounts: Any, mode: Any = "constant", value: Any = None) -> Node | None:
    if not isinstance(mode, str):  # aten.constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    if not t.is_value(x) or mode != "constant" or value or len(amounts) > 2 * len(t.shape(x) or ()):
        return None
    return Node(node.name, "pad", (t.ref(x),), t.shape(node), {"amounts": [int(a) for a in amounts]})


def _same(t: Tracer, node: fx.Node, x: Any, *_: Any, **__: Any) -> str | None:
    return t.ref(x) if t.is_value(x) else None


def _relu(t: Tracer, node: fx.Node, x: Any) -> Node | None:
    return _clamp(t, node, x, 0.0, None)


def _relu6(t: Tracer, node: fx.Node, x: Any) -> Node | None:
    return _clamp(t, node, x, 0.0, 6.0)


def _hardtanh(t: Tracer, node: fx.Node, x: Any, low: float = -1.0, high: float = 1.0) -> Node | None:
    return _clamp(t, node, x, low, high)


Rule = Callable[..., Node | str | None]
RULES: Mapping[str, Rule] = {
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten.relu.default": _relu,
    "aten.relu_.default": _relu,
    "aten.relu6.default": _relu6,
    "aten.relu6_.default": _relu6,
    "aten.hardtanh.default": _hardtanh,
    "aten.hardtanh_.default": _hardtanh,
    "aten.clamp.default": _clamp,
    "aten.clamp_.default": _clamp,
    "aten.clamp_min.default": _clamp,
    "aten.add.Tensor": _add,
    "aten.add_.Tensor": _add,
    "aten.cat.default": _concat,
    "aten.mean.dim": _mean,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.max_pool2d.default": _max_pool,
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten.flatten.using_ints": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.squeeze.dims": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.slice.Tensor": _slice,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    "aten.dropout.default": _same,
    "aten.dropout_.default": _same,
    "aten.feature_dropout.default": _same,
    "aten.contiguous.default": _same,
    "aten.clone.default": _same,
    "aten.detach.default": _same,
    "aten.detach_.default": _same,
    "aten.alias.default": _same,
}
