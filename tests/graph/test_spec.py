from __future__ import annotations

from math import prod

import pytest
import torch
from networks import SMALL, random_policy, samples, small, traced, trained_digits_cnn

from haqsearch.graph import model_spec, trace
from haqsearch.graph.plan import STREAM, make_plan
from haqsearch.models.resnet_cifar import resnet20
from haqsearch.ptq import prepare
from haqsearch.runtime import lower
from haqsearch.spec import Choice, Policy


@pytest.fixture(scope="module")
def resnet():
    return prepare(trace(resnet20(), samples((3, 32, 32), 2), "resnet20"))


def test_resnet20_by_hand(resnet):
    spec = model_spec(resnet)
    stage = 32 * 32 * 16 * 16 * 9  # every stage halves the image's sides and doubles the channels: same count
    macs = 32 * 32 * 16 * 3 * 9 + 6 * stage + 2 * (stage // 2 + 5 * stage) + 64 * 10
    assert sum(layer.macs for layer in spec) == macs == 40_551_040
    assert sum(layer.weight_count for layer in spec) == 432 + 6 * 2304 + (4608 + 5 * 9216) + (18432 + 5 * 36864) + 640
    assert len(spec) == len(spec.quantizable) == 20
    first, last = spec.layers[0], spec.layers[-1]
    assert (first.name, first.op, first.in_shape, first.out_shape) == ("conv1", "conv2d", (3, 32, 32), (16, 32, 32))
    assert (last.name, last.op, last.in_shape, last.out_shape) == ("linear", "linear", (64,), (10,))
    down = spec["layer2.0.conv1"]
    assert (down.stride, down.kernel, down.weight_shape, down.reduction) == ((2, 2), (3, 3), (32, 16, 3, 3), 144)
    assert down.inputs == ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2")
    assert all(layer.has_bias for layer in spec)  # folding adds one
    assert spec.ties == {layer.name: (layer.name,) for layer in spec}  # option A shortcuts hold no layer


def test_digits_cnn_by_hand():
    spec = model_spec(prepare(trace(trained_digits_cnn(), samples((1, 8, 8), 2))))
    expected = {
        "stem.conv": ("conv2d", 64 * 16 * 9),
        "block1.expand.conv": ("conv2d", 64 * 16 * 32),
        "block1.depthwise.conv": ("depthwise_conv2d", 64 * 32 * 9),
        "block1.project.conv": ("conv2d", 64 * 32 * 16),
        "block2.expand.conv": ("conv2d", 64 * 16 * 32),
        "block2.depthwise.conv": ("depthwise_conv2d", 16 * 32 * 9),
        "block2.project.conv": ("conv2d", 16 * 32 * 32),
        "conv1.conv": ("conv2d", 16 * 32 * 32 * 9),
        "conv2.conv": ("conv2d", 16 * 32 * 32 * 9),
        "down.conv": ("conv2d", 4 * 32 * 48 * 9),
        "classifier": ("linear", 480),
    }
    assert {layer.name: (layer.op, layer.macs) for layer in spec} == expected


def test_linear_layers_on_tokens_count_every_token():
    spec = small("tokens").spec
    assert {layer.name: layer.macs for layer in spec} == {"up": 4 * 6 * 10, "down": 4 * 10 * 6, "head": 24 * 3}


def test_grouped_layers_count_their_own_channels_only():
    spec = small("grouped").spec
    assert (spec["0"].op, spec["0"].macs) == ("depthwise_conv2d", 16 * 4 * 9)  # two outputs for each of two channels
    assert (spec["2"].groups, spec["2"].macs) == (2, 4 * 6 * 2 * 9)


def test_layers_that_read_one_tensor_are_tied():
    spec = small("tie").spec
    assert set(spec.ties.values()) == {("stem",), ("left", "right"), ("head",)}
    assert spec["left"].activation_tie == spec["right"].activation_tie != ""
    assert spec["head"].inputs == ("left", "right")


def test_ties_are_seen_through_moves():
    """max_pool, reshape, slice and pad keep codes: a layer before and a layer behind share the format."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a = torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(4, 2, 1)
            self.b = torch.nn.Linear(16, 2)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.a(x).mean((2, 3)) + self.b(torch.max_pool2d(x, 2).flatten(1))

    spec = model_spec(prepare(trace(Net().eval(), samples((2, 6, 6), 1))))
    assert ("a", "b") in spec.ties.values()


# -- lifetimes --------------------------------------------------------------------------------------------------------


def root(graph, name):
    """The node whose buffer a value lies in: a reshape is its input."""
    while graph[name].op == "reshape":
        name = graph[name].inputs[0]
    return name


@pytest.mark.parametrize("name", [*SMALL, "digits_cnn", "resnet20"])
def test_every_buffer_is_alive_whenever_it_is_read(name, resnet):
    if name == "resnet20":
        graph = resnet
    elif name == "digits_cnn":
        graph = prepare(trace(trained_digits_cnn(), samples((1, 8, 8), 2)))
    else:
        graph = prepare(traced(name))
    plan, spec = make_plan(graph), model_spec(graph)
    buffers = {buffer.name: buffer for buffer in spec.activations}
    assert len(buffers) == len(spec.activations)
    step = {node.name: i for i, node in enumerate(graph.nodes)}
    last_read = dict.fromkeys(buffers, -1)

    def buffer_of(value, slot):
        value = root(graph, value)
        if slot == "layers" and "stream" in plan.slots[value]:
            slot = "stream"  # a layer that wants it narrower narrows it as it reads
        return f"{value}:{slot}"

    for node in graph.nodes:
        if node.op == "reshape":
            continue
        for value in node.inputs:
            if graph[root(graph, value)].shape is None:
                continue  # sizes and lists in float regions hold no buffer
            slots = plan.slots[node.name] if node.op in {"slice", "pad", "max_pool2d"} else [plan.slot(node, value)]
            for slot in slots:
                key = buffer_of(value, slot)
                assert buffers[key].first <= step[node.name] <= buffers[key].last, (key, node.name)
                last_read[key] = max(last_read[key], step[node.name])
    final = buffer_of(graph.output, plan.slots[graph.output][-1])
    last_read[final] = len(graph.nodes)
    for key, buffer in buffers.items():
        value = key.rpartition(":")[0]
        assert buffer.first == step[value]
        assert buffer.elements == prod(graph[value].shape)
        assert buffer.last == max(last_read[key], step[value]), key  # and not a step longer than it is read


def test_a_residual_is_alive_until_its_add(resnet):
    adds = [i for i, node in enumerate(resnet.nodes) if node.op == "add"]
    streams = [b for b in model_spec(resnet).activations if b.name.endswith(":stream")]
    assert len(adds) == 9
    for add in adds:
        # at each add: both summands, and the sum itself
        assert sum(b.first <= add <= b.last for b in streams) == 3
    assert {b.bits for b in streams} == {STREAM.width}


def test_buffers_of_a_chain_overlap_only_with_their_neighbours():
    buffers = small("depthwise").spec.activations
    assert [(b.first, b.last) for b in buffers[:3]] == [(0, 1), (1, 2), (2, 3)]
    assert [b.format_of for b in buffers[:3]] == ["0", "2", "4"]


def test_every_tensor_kept_for_the_layers_is_in_the_format_its_spec_says():
    ready = small("tie")
    policy = random_policy(ready, 3)
    program = lower(ready.graph, policy, ready.ranges, ready.weight, ready.plan)
    for buffer in ready.spec.activations:
        value, _, slot = buffer.name.rpartition(":")
        if slot == "layers":
            assert f"{value}:{policy[buffer.format_of].activation}" in program.tensors


def test_widths_of_a_uniform_policy_reach_every_layer():
    ready = small("depthwise")
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w5a3")))
    layers = [step for step in program.instructions if step.layer]
    assert [str(step.weight_format) for step in layers] == ["int5"] * 4
    assert {str(program.tensors[step.inputs[0]].format) for step in layers} == {"uint3"}
