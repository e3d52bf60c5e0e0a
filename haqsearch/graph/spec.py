"""Graph -> ModelSpec: what everything that never sees a tensor needs to know."""

from __future__ import annotations

from math import prod

from haqsearch.errors import ModelError
from haqsearch.graph.ir import LAYER_OPS, MOVES, Graph, Node
from haqsearch.graph.plan import OUTPUT, STREAM, make_plan
from haqsearch.spec import ActivationSpec, LayerSpec, ModelSpec


def model_spec(graph: Graph) -> ModelSpec:
    """Layers, ties and buffer lifetimes of a prepared graph. Raises ModelError if it has no layer to quantize."""
    if not graph.layers:
        raise ModelError(f"{graph.name}: no convolution or linear layer to quantize")
    readers = make_plan(graph).readers
    layers = []
    for node in graph.nodes:
        if node.op in LAYER_OPS:
            tied = readers[graph.source(node.inputs[0]).name]
            layers.append(_layer(graph, node, graph.source(node.inputs[0]).name if len(tied) > 1 else ""))
        elif node.op == "float" and node.layer and "affine" not in node.attributes:
            layers.append(_float_layer(graph, node))
    return ModelSpec(graph.name, tuple(layers), _activations(graph), graph.input.shape or ())


def _layer(graph: Graph, node: Node, tie: str) -> LayerSpec:
    weight = tuple(graph.parameters[node.weight].shape)
    in_shape, out_shape = _shape(graph[node.inputs[0]]), _shape(node)
    at = node.attributes
    groups = at.get("groups", 1)
    depthwise = node.op == "conv2d" and groups > 1 and groups == in_shape[0]
    return LayerSpec(
        name=node.layer,
        op="depthwise_conv2d" if depthwise else node.op,
        in_shape=in_shape,
        weight_shape=weight,
        out_shape=out_shape,
        macs=prod(out_shape) * prod(weight[1:]),
        groups=groups,
        stride=tuple(at.get("stride", (1, 1))),
        kernel=weight[2:] if node.op == "conv2d" else (1, 1),  # type: ignore[arg-type]
        has_bias=bool(node.bias),
        inputs=_producers(graph, node),
        activation_tie=tie,
    )


def _float_layer(graph: Graph, node: Node) -> LayerSpec:
    """A layer no integer kernel computes; its cost is counted as float32's.

    All its weight matrices count as one of as many rows as the first. Every weight is used once per output position of a
    convolution (per input position of a transposed one), else once per vector of the input (a time step, say).
    """
    keys = [key for key in sorted(node.parameters) if graph.parameters[key].ndim >= 2]
    weight = tuple(graph.parameters[node.weight].shape)
    if len(keys) > 1:
        weight = (weight[0], -(-sum(graph.parameters[key].numel() for key in keys) // weight[0]))
    target = node.attributes["target"].split(".")[1]
    shape = node.shape or (1,)
    in_shape = graph[node.inputs[0]].shape or (1,)
    grid = in_shape if "transpose" in target else shape
    positions = prod(grid[1:]) if "conv" in target else prod(in_shape[:-1])
    return LayerSpec(
        name=node.layer,
        op=target,
        in_shape=in_shape,
        weight_shape=weight,
        out_shape=shape,
        macs=prod(weight) * positions,
        has_bias=any(graph.parameters[key].ndim == 1 for key in node.parameters),
        inputs=_producers(graph, node),
        quantizable=False,
        reason=f"no integer kernel for {target}",
    )


def _shape(node: Node) -> tuple[int, ...]:
    if node.shape is None:
        raise ModelError(f"{node.name}: a layer's input and output must keep the batch as their first dimension")
    return node.shape


def _producers(graph: Graph, node: Node) -> tuple[str, ...]:
    """Names of the nearest layers before ``node``, in network order."""
    found, todo, seen = set(), list(node.inputs), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        before = graph[name]
        if before.layer:
            found.add(before.layer)
        else:
            todo.extend(before.inputs)
    return tuple(n.layer for n in graph.nodes if n.layer in found)


def _activations(graph: Graph) -> tuple[ActivationSpec, ...]:
    """Buffers of the deployed program with their lifetimes, in steps of the node list.

    A reshape is its input's buffer. A value that is kept as a residual stream has that one buffer: a layer that wants it
    narrower narrows it as it reads.
    """
    plan = make_plan(graph)
    step = {node.name: i for i, node in enumerate(graph.nodes)}
    users = graph.users

    def last_read(name: str, slot: str) -> int:
        last = len(graph.nodes) if name == graph.output and slot in {"output", "float"} else step[name]
        for user in users[name]:
            if user.op == "reshape" and slot in plan.slots[user.name]:
                last = max(last, last_read(user.name, slot))
            elif slot in plan.slots[user.name] if user.op in MOVES else plan.slot(user, name) == slot:
                last = max(last, step[user.name])
        return last

    bits = {"stream": STREAM.width, "output": OUTPUT.width, "float": 32, "layers": 0}
    buffers = []
    for node in graph.nodes:
        if node.op == "reshape" or node.shape is None:
            continue
        slots, size, first = plan.slots[node.name], prod(node.shape), step[node.name]
        if "stream" in slots and "layers" in slots:
            last = max(last_read(node.name, "stream"), last_read(node.name, "layers"))
            buffers.append(ActivationSpec(f"{node.name}:stream", size, first, last, "", bits["stream"]))
            slots = tuple(slot for slot in slots if slot not in {"stream", "layers"})
        for slot in slots:
            owner = plan.owner[graph.source(node.name).name] if slot == "layers" else ""
            buffers.append(
                ActivationSpec(f"{node.name}:{slot}", size, first, last_read(node.name, slot), owner, bits[slot])
            )
    return tuple(buffers)
