from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import INTEGER, build, inputs, traced
from torch import nn

from haqsearch.graph import run_float, trace
from haqsearch.ptq import prepare
from haqsearch.ptq.bias_correct import InputMeans, Normal, corrected, expected_inputs, norm_outputs
from haqsearch.quant import quantize_weight
from haqsearch.spec import Format


def means_of(graph, x, batch=16):
    collector = InputMeans(graph)
    for part in x.split(batch):
        run_float(graph, part, collector)
    return collector.means()


@pytest.mark.parametrize(
    "name", ["conv_bias", "depthwise", "grouped", "dilated", "uneven", "tie", "tokens", "avg_pool"]
)
def test_corrected_layers_keep_the_mean_of_their_output(name):
    """Two bits for one layer, its inputs exact: the mean of every output channel is the float layer's."""
    graph, x = prepare(traced(name)), inputs(name, 40, 1)
    means = means_of(graph, x)
    assert means.keys() == {node.layer for node in graph.layers}
    for node in graph.layers:
        before = graph.replace([n.with_attributes(clamp=None) if n is node else n for n in graph.nodes])
        weight = graph.parameters[node.weight]
        rounded = quantize_weight(weight, Format("int", 2))
        one = corrected(weight, rounded, means[node.layer])
        bias = graph.parameters[node.bias] if node.bias else torch.zeros(len(weight))
        key = node.bias or "made"
        after = before.replace(
            [n.with_(bias=key) if n.layer == node.layer else n for n in before.nodes],
            {**graph.parameters, node.weight: rounded.dequantize(), key: bias + one.bias_correction},
        )
        values: list[torch.Tensor] = []
        for g in (before, after):
            run_float(g, x, lambda n, v, at=node.name, found=values: found.append(v) if n.name == at else None)
        channels = -1 if node.op == "linear" else 1
        expected, got = (v.double().movedim(channels, 0).flatten(1).mean(1) for v in values)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-5, 5),
    st.floats(1e-3, 5),
    st.one_of(st.none(), st.floats(-3, 0)),
    st.one_of(st.none(), st.floats(0.1, 6)),
)
def test_moments_of_a_clamped_normal_are_those_of_its_integral(mean, std, low, high):
    x = torch.linspace(mean - 9 * std, mean + 9 * std, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    y = x if low is None and high is None else x.clamp(low, high)
    first, second = (float(torch.trapezoid(density * y**k, x)) for k in (1, 2))
    found = Normal(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64)).clamped(
        low, high
    )
    assert float(found.mean) == pytest.approx(first, abs=1e-6 * (1 + std))
    assert float(found.std) ** 2 == pytest.approx(second - first**2, abs=1e-5 * (1 + std + abs(mean)) ** 2)


def test_a_channel_that_does_not_vary_is_clamped_as_it_is():
    found = Normal(torch.tensor([-1.0, 2.0, 9.0]).double(), torch.zeros(3).double()).clamped(0.0, 6.0)
    assert found.mean.tolist() == pytest.approx([0.0, 2.0, 6.0]) and found.std.tolist() == pytest.approx(
        [0.0] * 3, abs=1e-9
    )


class Normed(nn.Module):
    """Two separable blocks with batch norms, an add, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6())
        self.dw = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU())
        self.pw = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.pw(self.dw(x))).mean((2, 3)))


def test_what_batch_norms_say_is_near_what_data_say():
    """After the norms have seen data, the analytic means of all layers but the first are near the measured ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Normed()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.weight, 1.0, 0.3)
                nn.init.normal_(norm.bias, 0.0, 0.5)
        x = torch.randn(400, 3, 8, 8, generator=generator)
        with torch.no_grad():
            for part in x.split(100):
                for norm in model.modules():
                    if isinstance(norm, nn.BatchNorm2d):
                        norm.momentum = None
                model.train()(part)
    graph = trace(model.eval(), x[:1])
    found = norm_outputs(graph)
    assert found.keys() == {"stem.0", "dw.0", "pw.0"}
    torch.testing.assert_close(found["dw.0"].mean, model.dw[1].bias.detach().double())
    torch.testing.assert_close(found["dw.0"].std, model.dw[1].weight.detach().double().abs())
    folded = prepare(graph)
    analytic, measured = expected_inputs(folded, found), means_of(folded, x)
    assert analytic.keys() == {"dw.0", "pw.0", "head"}, "of the network's input nothing is known"
    for layer, mean in analytic.items():
        spread = float(measured[layer].std())
        assert float((mean - measured[layer]).abs().mean()) < 0.15 * max(spread, 0.2), layer


def test_padding_counts_in_the_analytic_mean():
    """A 3 x 3 window on a 2 x 2 image padded by one sees it in four of nine places."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding=1)).eval()
    model[1].bias.data.fill_(3.0)
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    mean = expected_inputs(prepare(graph), norm_outputs(graph))["2"].flatten().tolist()
    corner, edge, centre = (
        3.0 / 4,
        3.0 * 2 / 4,
        3.0,
    )  # outputs at which that weight of the window meets the image, of four
    assert mean == pytest.approx([corner, edge, corner, edge, centre, edge, corner, edge, corner])


@pytest.mark.parametrize("name", INTEGER)
def test_every_structure_has_expected_inputs_of_the_right_shape(name):
    graph = traced(name)
    found = expected_inputs(prepare(graph), norm_outputs(graph))
    measured = means_of(prepare(graph), inputs(name, 4))
    assert {layer: mean.shape for layer, mean in found.items()} == {layer: measured[layer].shape for layer in found}
    if any("norm" in key for key in build(name).state_dict()):
        assert found or name in {"norm_not_affine", "shortcut"}
