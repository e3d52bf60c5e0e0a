"""torch.export -> Graph.

An operator becomes what its rule (``rules.py``) makes of it. One without a rule, or whose rule declines a form of it,
becomes a ``float`` node: it runs in float32 between integer layers, and the caller is told.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from haqsearch.errors import DataError, ModelError
from haqsearch.graph.execute import resolve, run_float
from haqsearch.graph.ir import Graph, Node
from haqsearch.graph.rules import RULES

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
        graph = Tracer(program, name).graph()
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


class Tracer:
    """Walks an exported program once, node by node."""

    def __init__(self, program: torch.export.ExportedProgram, name: str) -> None:
        self.program, self.name = program, name
        self.parameters: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.alias: dict[str, str] = {}  # fx node -> our node, for operators that do nothing
        # Values known without the input: parameters and what is computed from them.
        self.constants: dict[fx.Node, Tensor] = {}
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
            made = self.float_node(node)
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

    def float_node(self, node: fx.Node) -> Node:
        """The node that runs the operator in float32, with its arguments as ``execute.py`` reads them."""
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
