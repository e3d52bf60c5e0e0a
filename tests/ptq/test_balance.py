"""Channels of narrow activations, rescaled: the same function, more equal ranges, the same integers everywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import image, inputs, prepared, samples, small
from torch import nn

from haqsearch.evaluate import prepared as prepared_module
from haqsearch.graph import Graph, run_float, trace
from haqsearch.graph.plan import make_plan
from haqsearch.graph.ranges import calibrate
from haqsearch.ptq import prepare
from haqsearch.ptq.balance import balancing_scales
from haqsearch.ptq.equalize import rescaled
from haqsearch.ptq.sequential import FloatOutputs
from haqsearch.quant import quantize_weight
from haqsearch.runtime import run_codes, run_program
from haqsearch.spec import Choice, Policy
from tests.runtime.oracle import oracle_codes

C, R = nn.Conv2d, nn.ReLU
NETS = {
    "separable": lambda: image(C(2, 6, 1), R(), C(6, 6, 3, padding=1, groups=6), R(), C(6, 4, 1), features=144),
    "grouped": lambda: image(C(2, 4, 3), R(), C(4, 6, 3, groups=2), R(), C(6, 2, 1, bias=False), features=8),
    "pooled": lambda: image(C(2, 4, 3, padding=1), R(), nn.MaxPool2d(2), C(4, 4, 3), features=4),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 5), R(), nn.Linear(5, 3)),
}
INPUT = (2, 6, 6)


def built(build) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def graph_of(model: nn.Module) -> Graph:
    return prepare(trace(model, samples(INPUT, 1)))


@cache
def net(name: str) -> Graph:
    return graph_of(built(NETS[name]))


def uneven(graph: Graph, seed: int) -> Graph:
    """Output channels of every layer, bias included, multiplied by 0.1 .. 10."""
    generator, parameters = torch.Generator().manual_seed(seed), dict(graph.parameters)
    for node in graph.layers:
        factor = 10 ** (2 * torch.rand(len(parameters[node.weight]), generator=generator) - 1)
        for key in filter(None, (node.weight, node.bias)):
            parameters[key] = parameters[key] * factor.reshape(-1, *[1] * (parameters[key].ndim - 1))
    return graph.replace(graph.nodes, parameters)


def policy_of(graph: Graph, text: str) -> Policy:
    return Policy({node.layer: Choice.parse(text) for node in graph.layers})


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([*NETS]), st.integers(0, 999), st.sampled_from(["w4a4", "w8a2", "w2a7"]))
def test_the_function_stays_and_half_of_the_way_is_left(name, seed, text):
    """So what is wanted once more is the square root of what was wanted first."""
    graph, x = uneven(net(name), seed), samples(INPUT, 64, seed)
    policy = policy_of(graph, text)
    after = rescaled(graph, balancing_scales(graph, policy, x.split(20)))
    expected = run_float(graph, x)
    torch.testing.assert_close(run_float(after, x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    first, again = (balancing_scales(g, policy, x.split(20)) for g in (graph, after))
    assert first and first.keys() == again.keys()
    for layer, scale in first.items():
        torch.testing.assert_close(again[layer], scale.sqrt(), rtol=2e-2, atol=0)  # fractions tried are 1 % apart


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([*NETS]), st.integers(0, 999))
def test_codes_of_the_layer_before_stay_as_they_are(name, seed):
    """Its scales by channel take up the factor: what the channels gain costs nothing there."""
    graph, x = uneven(net(name), seed), samples(INPUT, 32, seed)
    policy = policy_of(graph, "w4a4")
    after = rescaled(graph, scales := balancing_scales(graph, policy, [x]))
    first = next(node for node in graph.layers if node.layer in scales)
    was, now = (quantize_weight(g.parameters[first.weight], policy[first.layer].weight) for g in (graph, after))
    assert float((was.codes != now.codes).double().mean()) < 0.02  # a tie, or two scales of equal error
    torch.testing.assert_close(now.scale.double() * scales[first.layer], was.scale.double(), rtol=2e-2, atol=0)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([*NETS]), st.integers(0, 999), st.booleans())
def test_float_outputs_of_the_balanced_network_need_no_other_pass(name, seed, quick):
    graph, x = uneven(net(name), seed), samples(INPUT, 40, seed)
    scales = balancing_scales(graph, policy_of(graph, "w4a4"), [x])
    other = rescaled(graph, scales)
    had = FloatOutputs(graph, x, quick)
    found, expected = had.rescaled(other, scales), FloatOutputs(other, x, quick)
    assert found.graph is other and had.graph is graph
    for layer in expected.rows:
        assert all(map(torch.equal, found.positions[layer], expected.positions[layer]))
        for one, wanted in zip(found.rows[layer], expected.rows[layer], strict=True):
            torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(found.output, run_float(graph, x), rtol=1e-4, atol=1e-4)
    assert found.made is not had.made, "weights of one network are none of the other"


def test_ranges_are_taken_anew_where_balancing_changes_them_and_nowhere_else():
    graph, x = uneven(net("separable"), 3), samples(INPUT, 64, 3)
    network = replace(
        prepared(built(NETS["separable"]), x), graph=graph, plan=make_plan(graph), ranges=calibrate(graph, [x])
    )
    policy = policy_of(graph, "w4a4")
    scales = balancing_scales(graph, policy, [x])
    other = network._balanced(policy, scales, x)
    whole = calibrate(other.graph, [x])
    for value, layer in other.plan.owner.items():
        format = policy[layer].activation
        assert other.ranges.params(value, format).scale == pytest.approx(whole.params(value, format).scale, rel=1e-3)
        same = other.ranges.observers[value] is network.ranges.observers[value]
        assert same == (graph[value].layer not in scales)


@pytest.mark.parametrize("text", ["w4a8", "int4:tensor/uint4", "kmeans3/uint4"])
def test_nothing_is_done_where_it_is_not_free_or_not_wanted(text):
    graph = net("separable")
    assert not balancing_scales(graph, policy_of(graph, text), [samples(INPUT, 8)])


def test_what_has_a_ceiling_or_is_added_is_left_alone():
    graph = graph_of(built(lambda: image(C(2, 4, 3), nn.ReLU6(), C(4, 4, 3), R(), C(4, 2, 1), features=8)))
    assert balancing_scales(graph, policy_of(graph, "w4a4"), [samples(INPUT, 8)]).keys() == {"2"}
    shortcut = small("shortcut").graph
    assert not balancing_scales(shortcut, policy_of(shortcut, "w4a4"), [inputs("shortcut", 8)])


def test_channels_of_zeros_keep_their_scale():
    graph = net("linear")
    node, x, parameters = graph.layers[0], samples(INPUT, 32), dict(graph.parameters)
    for dead in ([2], [0, 1, 2, 3, 4]):
        for key, value in ((node.weight, 0.0), (node.bias, -1.0)):
            parameters[key] = parameters[key].clone()
            parameters[key][dead] = value
        (scale,) = balancing_scales(graph.replace(graph.nodes, parameters), policy_of(graph, "w4a4"), [x]).values()
        assert bool(torch.isfinite(scale).all()) and bool((scale[dead] == 1).all())


@pytest.mark.parametrize("name", [*NETS])
@pytest.mark.parametrize("text", ["w4a3", "vsq4/uint4"])
def test_programs_in_order_are_exact_and_the_same_again(name, text):
    """What runs is the oracle's arithmetic; the same inputs give the same program; the network given is not touched."""
    calibration = samples(INPUT, 64)
    network = prepared(built(NETS[name]), calibration)
    before, policy = network.graph.digest, Policy.uniform(network.spec, Choice.parse(text))
    programs = [network.in_order(policy, calibration).lower(policy) for _ in range(2)]
    x = samples(INPUT, 32, 5) * 2
    codes = run_codes(programs[0], x)
    assert torch.equal(codes.double(), oracle_codes(programs[0], x))
    assert torch.equal(codes, run_codes(programs[1], x))
    assert network.graph.digest == before


@settings(max_examples=4, deadline=None)
@given(st.sampled_from([*NETS]), st.integers(0, 999), st.sampled_from(["w3a3", "w8a2"]))
def test_never_further_from_the_float_network_on_what_was_seen(name, seed, text):
    """Than without balancing: what does not help is not kept."""
    seen = samples(INPUT, 64, seed)
    network = replace(prepared(built(NETS[name]), seen), graph=(graph := uneven(net(name), seed)))
    network = replace(network, ranges=calibrate(graph, [seen]), plan=make_plan(graph))
    policy = policy_of(graph, text)
    kept, without = network.in_order(policy, seen), network.rounded_in_order(policy, FloatOutputs(network.graph, seen))
    wanted = run_float(graph, seen)
    errors = [float((run_program(n.lower(policy), seen) - wanted).square().mean()) for n in (kept, without)]
    assert errors[0] <= errors[1] * (1 + 1e-5)


def test_channels_that_matter_alike_but_are_uneven_lose_less(monkeypatch):
    """Rounded in network order at W8A3, with balanced channels and without, on inputs that neither saw."""
    gains = []
    for seed in range(3):
        model = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 24), R(), nn.Linear(24, 8)))
        factor = 10 ** (2 * torch.rand(24, generator=torch.Generator().manual_seed(seed)) - 1)
        for tensor in (model[1].weight.data.T, model[1].bias.data):
            tensor *= factor
        model[3].weight.data /= factor
        seen, unseen = samples(INPUT, 256, seed), samples(INPUT, 256, seed + 100)
        network = prepared(model, seen)
        edge = {network.graph.layers[0].layer: Choice.parse("w8a8")}
        policy, wanted, errors = Policy.uniform(network.spec, Choice.parse("w8a3"), edge), model(unseen), []
        for scales in (balancing_scales, lambda *_: {}):
            with monkeypatch.context() as patch:
                patch.setattr(prepared_module, "balancing_scales", scales)
                program = network.in_order(policy, seen).lower(policy)
            errors.append(float((run_program(program, unseen) - wanted.detach()).square().mean()))
        gains.append(errors[0] / errors[1])
    assert max(gains) < 0.7, gains
