from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SMALL, build, inputs, small, traced, trained_norms
from torch import nn

from haqsearch.graph import run_float, trace
from haqsearch.ptq import fold_batch_norms, fuse_clamps, prepare

# Tracing costs most; batch norms of every statistic are had by changing the parameters of one traced graph.
CONV_NORM = traced("conv_bias_norm")
(NORM,) = (node for node in CONV_NORM.nodes if "affine" in node.attributes)


def close(a, b):
    a, b = a.detach(), b.detach()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(float(b.abs().max()), 1.0))


@pytest.mark.parametrize("name", SMALL)
def test_preparing_leaves_the_float_function_unchanged(name):
    graph = traced(name)
    x = inputs(name, 5, 1)
    close(run_float(prepare(graph), x), run_float(graph, x))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-3, 3)] * 3, st.floats(1e-3, 1e3)), min_size=4, max_size=4),
    st.integers(0, 1000),
)
def test_folding_is_exact_for_all_statistics(statistics, seed):
    gamma, beta, mean, var = (torch.tensor(column) for column in zip(*statistics, strict=True))
    model = build("conv_bias_norm", seed)
    norm = model[1]
    for target, value in zip(
        (norm.weight, norm.bias, norm.running_mean, norm.running_var), (gamma, beta, mean, var), strict=True
    ):
        target.data.copy_(value)
    parameters = {**CONV_NORM.parameters, **{k: v.detach() for k, v in model.state_dict().items() if v.ndim}}
    scale = gamma.double() / torch.sqrt(var.double() + norm.eps)
    parameters |= dict(zip(NORM.attributes["affine"], (scale, beta.double() - mean.double() * scale), strict=True))
    graph = CONV_NORM.replace(CONV_NORM.nodes, parameters)
    folded = fold_batch_norms(graph)
    assert "float" not in {node.op for node in folded.nodes}
    x = inputs("conv_bias_norm", 3, seed)
    with torch.no_grad():
        expected = model(x)
        close(run_float(graph, x), expected)  # the parameters put in are those of the model
        close(run_float(folded, x), expected)


def test_folding_does_not_touch_the_graph_it_is_given():
    before = CONV_NORM.digest
    prepare(CONV_NORM)
    assert CONV_NORM.digest == before


def test_folding_leaves_no_parameter_behind():
    folded = prepare(CONV_NORM)
    assert folded.parameters.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}
    without_bias = prepare(traced("conv_norm"))
    assert without_bias.parameters.keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_a_batch_norm_that_no_layer_can_take_up_stays():
    graph = traced("normed_input")
    folded = prepare(graph)
    assert sum("affine" in node.attributes for node in folded.nodes) == 2
    x = inputs("normed_input", 4, 2)
    close(run_float(folded, x), run_float(graph, x))


def test_a_batch_norm_behind_an_add_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.head(self.norm(x + self.conv(x))).mean((2, 3))

    model, x = Net().eval(), inputs("tie", 3)
    trained_norms(model)
    folded = prepare(trace(model, x))
    assert [node.attributes["target"] for node in folded.nodes if node.op == "float"] == ["aten.batch_norm.default"]
    close(run_float(folded, x), model(x))


@pytest.mark.parametrize(
    ("name", "op", "bounds"),
    [
        ("conv_bias", "conv2d", (0.0, None)),
        ("relu6", "conv2d", (0.0, 6.0)),
        ("hardtanh", "conv2d", (-0.25, 0.5)),
        ("clamp", "conv2d", (-0.5, None)),
        ("perceptron", "linear", (0.0, None)),
        ("shortcut", "add", (0.0, None)),
    ],
)
def test_an_activation_is_fused_into_what_it_follows(name, op, bounds):
    fused = prepare(traced(name))
    assert "clamp" not in {node.op for node in fused.nodes}
    assert (op, bounds) in [(node.op, node.attributes.get("clamp")) for node in fused.nodes]


@pytest.mark.parametrize(("name", "count"), [("unfused_relu", 1), ("clamped_input", 1)])
def test_an_activation_of_a_value_read_elsewhere_too_stays(name, count):
    assert [node.op for node in small(name).graph.nodes].count("clamp") == count


def test_two_activations_in_a_row_stay_two():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Hardtanh(-1, 1), nn.Linear(5, 3)).eval()
    graph = trace(model, inputs("perceptron", 1))
    fused = fuse_clamps(graph)
    assert [node.op for node in fused.nodes] == ["input", "linear", "clamp", "linear"]
    x = inputs("perceptron", 9)
    close(run_float(fused, x), model(x).detach())
