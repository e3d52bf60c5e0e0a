from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import INTEGER, image, prepared, samples, traced
from torch import nn

from haqsearch.graph import Graph, run_float, trace
from haqsearch.ptq import prepare
from haqsearch.ptq.equalize import chains, equalize, equalizing_scales, rescaled
from haqsearch.quant import quantize_weight
from haqsearch.runtime import run_codes
from haqsearch.spec import Choice, Format, Policy
from tests.export.test_onnx import check_equal, exported
from tests.runtime.oracle import oracle_codes

C, R6 = nn.Conv2d, nn.ReLU6
NETS: dict[str, nn.Module] = {
    "separable": image(C(2, 6, 1), R6(), C(6, 6, 3, padding=1, groups=6), R6(), C(6, 4, 1), features=144),
    "multiplier": image(C(2, 4, 1), R6(), C(4, 8, 3, groups=4), R6(), C(8, 4, 1), features=64),
    "grouped": image(C(2, 4, 3), R6(), C(4, 6, 3, groups=2), nn.ReLU(), C(6, 2, 1, bias=False), features=8),
    "pooled": image(C(2, 4, 3, padding=1), R6(), nn.AvgPool2d(2), C(4, 4, 3), features=4),
    "flattened": image(C(2, 4, 3), R6(), nn.MaxPool2d(2), features=16),
    "no_activation": image(C(2, 4, 3), C(4, 3, 3), features=12),
    "one_sided": image(C(2, 4, 3), nn.Hardtanh(0.0, 0.5), C(4, 3, 3), features=12),
    "both_sided": image(C(2, 4, 3), nn.Hardtanh(-0.5, 0.5), C(4, 3, 3), features=12),
    "padded": image(C(2, 4, 3), R6(), nn.ZeroPad2d((0, 1, 0, 1)), C(4, 3, 3), features=27),
    "channels_padded": image(C(2, 4, 3), nn.ReLU(), nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0), C(6, 3, 3), features=12),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.ReLU6(), nn.Linear(5, 3)),
}
FOUND = {
    "separable": ["0>2", "2>4", "4>6"], "multiplier": ["0>2", "2>4", "4>6"], "grouped": ["0>2", "2>4", "4>6"],
    "pooled": ["0>3", "3>5"], "flattened": ["0>4"], "no_activation": ["0>1", "1>3"], "one_sided": ["0>2", "2>4"],
    "both_sided": ["2>4"], "padded": ["0>3", "3>5"], "channels_padded": ["3>5"], "linear": ["1>3"],
}  # fmt: skip
SMALL = {"tie": ["stem>left+right"], "concat": ["stem>left+right"], "unfused_relu": [], "shortcut": [], "tokens": [],
         "perceptron": ["0>2"], "relu6": ["0>3"], "clamp": []}  # fmt: skip


@cache
def net(name: str) -> Graph:
    if name in SMALL:
        return prepare(traced(name))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in NETS[name].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return prepare(trace(NETS[name].eval(), samples((2, 6, 6), 1)))


def shape_of(name: str) -> tuple[int, ...]:
    return INTEGER[name].shape if name in SMALL else (2, 6, 6)


def uneven(graph: Graph, seed: int, decades: float) -> Graph:
    """Output channels of every layer multiplied by 10 ** (-decades .. decades)."""
    generator, parameters = torch.Generator().manual_seed(seed), dict(graph.parameters)
    for node in graph.layers:
        weight = parameters[node.weight]
        factor = 10 ** (decades * (2 * torch.rand(len(weight), generator=generator) - 1))
        parameters[node.weight] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    return graph.replace(graph.nodes, parameters)


def same(graph: Graph, other: Graph, x: torch.Tensor) -> None:
    expected = run_float(graph, x)
    torch.testing.assert_close(run_float(other, x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [*FOUND, *SMALL])
def test_chains_are_found_where_channels_can_be_rescaled(name):
    found = [f"{c.first.layer}>{'+'.join(r.layer for r in c.readers)}" for c in chains(net(name))]
    assert found == {**FOUND, **SMALL}[name]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*FOUND, *SMALL]), st.integers(0, 999), st.floats(0, 1.5), st.floats(0.1, 10))
def test_equalization_leaves_the_function_unchanged(name, seed, decades, spread):
    graph = uneven(net(name), seed, decades)
    same(graph, equalize(graph), samples(shape_of(name), 5, seed) * spread)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*FOUND, *SMALL]), st.integers(0, 999), st.floats(0.1, 10))
def test_so_does_any_other_rescaling(name, seed, spread):
    graph = net(name)
    same(graph, rescaled(graph, random_scales(graph, seed)), samples(shape_of(name), 5, seed) * spread)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["separable", "grouped", "linear", "no_activation"]), st.integers(0, 999), st.floats(0, 1.5))
def test_equalized_is_equal(name, seed, decades):
    """The two ranges of every channel are the same, whatever the weights; and nothing more is to be done."""
    graph = equalize(uneven(net(name), seed, decades))
    for chain in chains(graph):
        out = graph.parameters[chain.first.weight].abs().flatten(1).amax(1)
        into = torch.stack([_into(graph, reader, len(out)) for reader in chain.readers]).amax(0)
        torch.testing.assert_close(out, into, rtol=1e-2, atol=0)
    for scale in equalizing_scales(graph).values():
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-2, atol=0)


def _into(graph, reader, channels):
    """Largest weight on each input channel, channel by channel."""
    weight, groups = graph.parameters[reader.weight], reader.attributes.get("groups", 1)
    if reader.op == "linear":
        return weight.reshape(len(weight), channels, -1).abs().amax((0, 2))
    inputs, outputs = channels // groups, len(weight) // groups
    return torch.stack(
        [weight[c // inputs * outputs : (c // inputs + 1) * outputs, c % inputs].abs().max() for c in range(channels)]
    )


def test_the_scales_of_a_pair_by_hand():
    """s = sqrt(r1 / r2): 8 and 2 give 2, 1 and 4 give 1/2; dead channels keep theirs, before and behind."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data = torch.tensor([[8.0, -1.0], [0.5, 1.0], [0.0, 0.0], [3.0, 3.0]])
    model[2].weight.data = torch.tensor([[-2.0, 4.0, 5.0, 0.0], [1.0, 0.0, 5.0, 0.0]])
    graph = prepare(trace(model.eval(), torch.zeros(1, 2)))
    assert equalizing_scales(graph)["0"].tolist() == pytest.approx([2.0, 0.5, 1.0, 1.0])
    after = equalize(graph).parameters
    assert after["0.weight"].abs().amax(1).tolist() == pytest.approx([4.0, 2.0, 0.0, 3.0])
    assert after["2.weight"].abs().amax(0).tolist() == pytest.approx([4.0, 2.0, 5.0, 0.0])


def test_a_relu6_gets_a_bound_by_channel_and_a_relu_none():
    graph = uneven(net("separable"), 1, 1.0)
    scales, after = equalizing_scales(graph), equalize(graph)
    low, high = next(node for node in after.layers if node.layer == "2").attributes["clamp"]
    assert low == 0.0 and high == pytest.approx((6 / scales["2"]).tolist())
    assert next(node for node in equalize(net("perceptron")).layers).attributes["clamp"] == (0.0, None)


def test_the_graph_given_is_not_touched():
    graph = uneven(net("separable"), 3, 1.0)
    before = graph.digest
    equalize(graph)
    assert graph.digest == before


def random_scales(graph: Graph, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ones = equalizing_scales(graph)
    return {
        layer: torch.exp(torch.randn(len(s), generator=generator, dtype=torch.float64)) for layer, s in ones.items()
    }


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["separable", "multiplier", "grouped", "linear", "tie"]), st.integers(0, 999))
def test_equalization_undoes_any_rescaling(name, seed):
    graph = net(name)
    wanted, found = equalize(graph), equalize(rescaled(graph, random_scales(graph, seed)))
    for key, value in wanted.parameters.items():
        torch.testing.assert_close(found.parameters[key], value, rtol=2e-2, atol=1e-6)


def test_one_scale_for_a_layer_loses_less_after_equalization():
    graph = rescaled(net("separable"), random_scales(net("separable"), 1))
    x = samples((2, 6, 6), 200)
    expected = run_float(graph, x)

    def error(g: Graph) -> float:
        format = Format("int", 4, "tensor")
        rounded = {n.weight: quantize_weight(g.parameters[n.weight], format).dequantize() for n in g.layers}
        return float((run_float(g.replace(g.nodes, {**g.parameters, **rounded}), x) - expected).norm())

    assert error(equalize(graph)) < 0.6 * error(graph)


@pytest.mark.parametrize("name", ["separable", "grouped", "linear", "one_sided"])
@pytest.mark.parametrize("text", ["w8a8", "int6:tensor/uint4"])
def test_programs_of_equalized_networks_are_exact(name, text, tmp_path):
    """Bounds by channel included: the ceilings are met, in the stream and in narrower copies of it."""
    from haqsearch.graph.plan import make_plan
    from haqsearch.graph.ranges import calibrate
    from haqsearch.runtime import lower

    ready = prepared(NETS[name], samples((2, 6, 6), 8))
    graph = equalize(uneven(ready.graph, 5, 1.0))
    x = samples((2, 6, 6), 64, 3) * 8
    ranges = calibrate(graph, x.split(16))
    weight = lambda layer, format: quantize_weight(graph.parameters[f"{layer}.weight"], format)  # noqa: E731
    plan = make_plan(graph)
    program = lower(graph, Policy.uniform(ready.spec, Choice.parse(text)), ranges, weight, plan)
    ceilings = [step for step in program.instructions if step.op == "minimum"]
    assert ceilings
    assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x))
    check_equal(program, exported(program, tmp_path), x)
    for step in ceilings:
        high = program.constants[f"{step.name}.high"]
        assert int(high.min()) < int(high.max()) == program.tensors[step.outputs[0]].high
