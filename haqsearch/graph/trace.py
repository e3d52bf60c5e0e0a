"""torch.export -> Graph.

``RULES`` maps an ATen operator to the function that turns its call into a node; supporting another operator is one
function and one line there. An operator without a rule, or whose rule declines a form of it, becomes a ``float`` node: it
runs in float32 between integer layers, and the caller is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from haqsearch.errors import DataError, ModelError
from haqsearch.graph.execute import resolve, run_float
from haqsearch.graph.ir import Graph, Node

_CHECK_TOLERANCE = 1e-4


def trace(model: nn.Module, example: Tensor, name: str = "model") -> Graph:
    """Graph of ``model`` (in eval mode; its own mode is restored), for inputs shaped like ``example`` (B >= 1, ...).

    The batch size stays free. Raises ModelError if the model cannot be exported, takes more than one tensor, gives more than
    one, mixes the samples of a batch, or if the graph does not compute what the model computes; DataError if a weight is NaN.
    """
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{name}: parameter {key!r} holds NaN or infinity; check the weights file")
    training = model.training
    model.eval()
    try:
        pair = example[:1].repeat(2, *[1] * (example.ndim - 1))
        program = _export(model, pair, name)
        graph = _Tracer(program, name).graph()
        _check_equal(graph, model, example, name)
    finally:
        model.train(training)
    return graph


def _export(model: nn.Module, pair: Tensor, name: str) -> torch.export.ExportedProgram:
    """Export with a free batch size; where the model fixes it by an assertion, with two samples."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    try:
        return torch.export.export(model, (pair,), dynamic_shapes=({0: batch},))
    except Exception:  # torch.export raises many kinds; the second attempt reports
        try:
            return torch.export.export(model, (pair,))
        except Exception as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"{name}: torch.export cannot capture this model for an input of shape {tuple(pair.shape)}: {first[0]}"
            ) from error


def _check_equal(graph: Graph, model: nn.Module, example: Tensor, name: str) -> None:
    three = torch.cat([example[:1]] * 2 + [example[-1:] * 0.5])
    with torch.no_grad():
        try:
            expected = _only_tensor(model(three))
            alone = torch.cat([_only_tensor(model(sample)) for sample in three.split(1)])
            got = run_float(graph, three)
        except RuntimeError as error:
            raise ModelError(
                f"{name}: the model fixes its batch size somewhere; derive it from x.shape[0] ({error})"
            ) from error
    if not _close(alone, expected):
        raise ModelError(
            f"{name}: the model mixes the samples of a batch: one alone gives another result than in company"
        )
    if not _close(got, expected):
        raise ModelError(f"{name}: the traced graph does not compute what the model computes; please report this model")


def _only_tensor(result: Any) -> Tensor:
    """The tensor in what a model gives: itself, or wrapped in a tuple, a list or a dictionary."""
    return tree_leaves(result)[0]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=_CHECK_TOLERANCE, atol=_CHECK_TOLERANCE)


class _Tracer:
    """Walks an exported program once, node by node."""

    def __init__(self, program: torch.export.ExportedProgram, name: str) -> None:
        self.program, self.name = program, name
        self.parameters: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.alias: dict[str, str] = {}  # fx node -> our node, for operators that do nothing
        self.constants: dict[
            fx.Node, Tensor
        ] = {}  # values known without the input: parameters and what is computed from them
        self.constant_names: dict[fx.Node, str] = {}
        self.used: dict[str, int] = {}

    def graph(self) -> Graph:
        signature = self.program.graph_signature
        inputs = [spec.arg.name for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
        if len(inputs) != 1:
            raise ModelError(f"{self.name}: a model of one input tensor is needed, this one takes {len(inputs)}")
        targets = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target is not None}
        state = {**self.program.state_dict, **self.program.constants}
        output = None
        for node in self.program.graph_module.graph.nodes:
            if node.op == "placeholder":
                if node.name in targets:
                    value = state[targets[node.name]]
                    if isinstance(value, Tensor):
                        self.constants[node] = value.detach()
                        self.constant_names[node] = targets[node.name]
                else:
                    self._emit(node, Node(node.name, "input", (), self.shape(node)))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                if len(results) != 1 or not isinstance(results[0], fx.Node):
                    raise ModelError(
                        f"{self.name}: a model with one output tensor is needed, this one gives {len(results)}"
                    )
                output = self.ref(results[0])
            elif node.op != "get_attr":
                raise ModelError(f"{self.name}: cannot trace {node.op} {node.target}")
        if output is None or output not in {node.name for node in self.nodes}:
            raise ModelError(f"{self.name}: the output does not depend on the input")
        return _without_dead_nodes(Graph(self.name, tuple(self.nodes), output, self.parameters))

    # -- helpers the rules use ------------------------------------------------------------------------------------

    def ref(self, node: fx.Node) -> str:
        """Name of our node that holds the value of an fx node."""
        return self.alias.get(node.name, node.name)

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Shape without the batch; None if the value is no tensor, or its first dimension is not the batch."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.ndim == 0:
            return None
        sizes = value.shape
        is_batch = not isinstance(sizes[0], int) or sizes[0] == 2
        if not is_batch or not all(isinstance(size, int) for size in sizes[1:]):
            return None
        return tuple(int(size) for size in sizes[1:])

    def is_value(self, argument: Any) -> bool:
        """Whether an argument is a tensor that depends on the input and keeps the batch first."""
        return isinstance(argument, fx.Node) and argument not in self.constants and self.shape(argument) is not None

    def parameter(self, node: fx.Node | None) -> str:
        """Key under which a constant lies in ``parameters`` ('' for None); it is put there on first use."""
        if node is None:
            return ""
        key = self.constant_names.setdefault(node, node.name)
        self.parameters.setdefault(key, self.constants[node].clone())
        return key

    def layer_name(self, node: fx.Node, weight: fx.Node) -> str:
        """Dotted path of the module that owns ``weight``; where the weight is computed, of the module that calls ``node``."""
        name = self.parameter(weight).removesuffix(".weight")
        if weight.op != "placeholder":
            stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
            name = stack[-1] if stack else name
        self.used[name] = self.used.get(name, 0) + 1
        if self.used[name] > 1:
            raise ModelError(
                f"{self.name}: layer {name!r} is called more than once with the same weights; "
                "give each call its own copy of the module"
            )
        return name

    # -- the walk -------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        references = [n for n in node.all_input_nodes if n not in self.constants]
        if not references and isinstance(node.meta.get("val"), Tensor):
            self.constants[node] = self._fold(node)
            return
        rule = RULES.get(_target_name(node))
        made = rule(self, node, *node.args, **node.kwargs) if rule and self.shape(node) is not None else None
        if made is None:
            made = self._float(node)
        if isinstance(made, str):
            self.alias[node.name] = made
        else:
            self._emit(node, made)

    def _emit(self, node: fx.Node, made: Node) -> None:
        if made.name != node.name:
            self.alias[node.name] = made.name
        self.nodes.append(made)

    def _fold(self, node: fx.Node) -> Tensor:
        """Value of an operator all of whose inputs are constants (a parametrized weight, say)."""

        def known(argument: fx.Node) -> Any:
            return self.constants[argument]

        with torch.no_grad():
            value = node.target(*fx.map_arg(node.args, known), **fx.map_arg(node.kwargs, known))  # type: ignore[operator]
        return value if isinstance(value, Tensor) else torch.as_tensor(value)

    def _float(self, node: fx.Node) -> Node:
        target = _target_name(node)
        resolve(target)
        inputs = tuple(dict.fromkeys(self.ref(n) for n in node.all_input_nodes if n not in self.constants))
        arguments = [self._template(a) for a in node.args]
        keywords = {key: self._template(value) for key, value in node.kwargs.items()}
        weight = next((n for n in node.all_input_nodes if n in self.constants and self.constants[n].ndim >= 2), None)
        layer = ""
        if weight is not None:
            layer = self.parameter(weight).rpartition(".")[0] or self.parameter(weight)
        return Node(
            node.name,
            "float",
            inputs,
            self.shape(node),
            {"target": target, "arguments": arguments, "keywords": keywords},
            layer,
            self.parameter(weight) if layer else "",
        )

    def _template(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            if argument in self.constants:
                return {"parameter": self.parameter(argument)}
            return {"node": self.ref(argument)}
        if isinstance(argument, list | tuple):
            return {"list": [self._template(item) for item in argument]}
        if isinstance(argument, torch.dtype | torch.layout | torch.memory_format):
            return {type(argument).__name__: str(argument).removeprefix("torch.")}
        if isinstance(argument, torch.device):
            return {"device": str(argument)}
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise ModelError(f"{self.name}: cannot keep the argument {argument!r} of an operator")


def _target_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        namespace, _, name = node.target.name().partition("::")
        overload = node.target._overloadname
        return f"{namespace}.{name.partition('.')[0]}.{overload}"
    return f"operator.{getattr(node.target, '__name__', node.target)}"


def _without_dead_nodes(graph: Graph) -> Graph:
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return graph.replace(node for node in graph.nodes if node.name in needed or node.op == "input")


# -- rules: (tracer, fx node, *the operator's arguments) -> Node, the name of a node the value equals, or None ----------


def _two(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * 2 if len(values) == 1 else values


def _conv2d(
    t: _Tracer,
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


def _linear(t: _Tracer, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Node | None:
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
    t: _Tracer,
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
    made = t._float(node)
    scale_key, shift_key = f"{node.name}.scale", f"{node.name}.shift"
    t.parameters[scale_key], t.parameters[shift_key] = scale, shift
    return made.with_attributes(affine=(scale_key, shift_key))


def _clamp(t: _Tracer, node: fx.Node, x: Any, low: Any = None, high: Any = None) -> Node | None:
    numbers = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
    if not t.is_value(x) or not numbers:
        return None
    return Node(node.name, "clamp", (t.ref(x),), t.shape(node), {"low": low, "high": high})


def _add(t: _Tracer, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Node | None:
    if not t.is_value(a) or not t.is_value(b) or alpha != 1 or t.shape(a) != t.shape(b):
        return None
    return Node(node.name, "add", (t.ref(a), t.ref(b)), t.shape(node))


def _concat(t: _Tracer, node: fx.Node, tensors: Any, dim: int = 0) -> Node | None:
    if not all(t.is_value(x) for x in tensors):
        return None
    dim = dim % (len(t.shape(node) or ()) + 1)
    return Node(node.name, "concat", tuple(t.ref(x) for x in tensors), t.shape(node), {"dim": dim}) if dim else None


def _mean(t: _Tracer, node: fx.Node, x: Any, dims: Any, keepdim: bool = False, dtype: Any = None) -> Node | None:
    """A mean over both image dimensions is an average pool with one window."""
    shape = t.shape(x) if t.is_value(x) else None
    if shape is None or len(shape) != 3 or sorted(d % 4 for d in _two(dims)) != [2, 3] or dtype is not None:
        return None
    return _global_pool(t, node, x, shape)


def _global_pool(t: _Tracer, node: fx.Node, x: fx.Node, shape: tuple[int, ...]) -> Node:
    at = {"kernel": list(shape[1:]), "stride": list(shape[1:]), "padding": [0, 0]}
    pooled = Node(node.name, "avg_pool2d", (t.ref(x),), (shape[0], 1, 1), at)
    if t.shape(node) == pooled.shape:
        return pooled
    t.nodes.append(pooled.with_(name=f"{node.name}_pool"))
    return Node(node.name, "reshape", (f"{node.name}_pool",), t.shape(node))


def _adaptive_avg_pool(t: _Tracer, node: fx.Node, x: Any, size: Any) -> Node | None:
    shape = t.shape(x) if t.is_value(x) else None
    return _global_pool(t, node, x, shape) if shape and len(shape) == 3 and _two(size) == [1, 1] else None


def _avg_pool(
    t: _Tracer,
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
    t: _Tracer,
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


def _reshape(t: _Tracer, node: fx.Node, x: Any, *_: Any, **__: Any) -> Node | None:
    """Any operator that keeps every sample's elements in their order: view, flatten, squeeze, unsqueeze."""
    shape = t.shape(x) if t.is_value(x) else None
    new = t.shape(node)
    if shape is None or new is None or prod(shape) != prod(new):
        return None
    return Node(node.name, "reshape", (t.ref(x),), new)


def _slice(
    t: _Tracer, node: fx.Node, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
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


def _pad(t: _Tracer, node: fx.Node, x: Any, amounts: Any, mode: Any = "constant", value: Any = None) -> Node | None:
    if not isinstance(mode, str):  # aten.constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    if not t.is_value(x) or mode != "constant" or value or len(amounts) > 2 * len(t.shape(x) or ()):
        return None
    return Node(node.name, "pad", (t.ref(x),), t.shape(node), {"amounts": [int(a) for a in amounts]})


def _same(t: _Tracer, node: fx.Node, x: Any, *_: Any, **__: Any) -> str | None:
    return t.ref(x) if t.is_value(x) else None


def _relu(t: _Tracer, node: fx.Node, x: Any) -> Node | None:
    return _clamp(t, node, x, 0.0, None)


def _relu6(t: _Tracer, node: fx.Node, x: Any) -> Node | None:
    return _clamp(t, node, x, 0.0, 6.0)


def _hardtanh(t: _Tracer, node: fx.Node, x: Any, low: float = -1.0, high: float = 1.0) -> Node | None:
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
