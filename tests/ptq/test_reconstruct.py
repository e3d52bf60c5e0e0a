from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.evaluate import WeightBank
from haqsearch.graph import run_float, trace
from haqsearch.ptq.fold import prepare
from haqsearch.ptq.pipeline import Pipeline
from haqsearch.ptq.reconstruct import (
    QUICK,
    THOROUGH,
    InputStatistics,
    draw_positions,
    input_statistics,
    layer_rows,
    output_size,
    reconstruct_weight,
    row_order,
    squares,
)
from haqsearch.quant import quantize_weight
from haqsearch.spec import Choice, Format, Policy
from haqsearch.spec.ptq import PTQ_PRESETS


def statistics_of(x: torch.Tensor) -> InputStatistics:
    """Of the inputs ``x`` (rows, K) of a linear layer."""
    x = x.double()
    mean = x.mean(0, keepdim=True)
    return InputStatistics(mean, (x.T @ x / len(x) - mean.T @ mean)[None])


def bank_of(graph, preset, inputs, folder=None):
    return WeightBank(Pipeline(graph, PTQ_PRESETS[preset]), inputs, folder)


def output_error(weight, codes, scale, correction, x, bias=True):
    change = (weight.double() - codes.double() * scale.double()[:, None]) @ x.double().T
    if bias:
        change = change - correction.double()[:, None]
    return (change**2).mean(1)


layers = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(2, 8), st.integers(0, 10_000), st.booleans())


@settings(max_examples=60, deadline=None)
@given(layers)
def test_never_worse_than_nearest_rounding_on_the_data_it_saw(layer):
    outputs, inputs, width, seed, bias = layer
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator)
    x = torch.relu(torch.randn(200, inputs, generator=generator) @ mixing + 0.3)
    weight = torch.randn(outputs, inputs, generator=generator)
    format, statistics = Format("int", width), statistics_of(x)
    effort = QUICK if seed % 2 else THOROUGH
    made = reconstruct_weight(weight, format, statistics, has_bias=bias, effort=effort)
    assert (made.bias_correction is None) is not bias
    assert int(made.codes.abs().max()) <= format.code_max
    nearest = quantize_weight(weight, format)
    corrected = ((weight - nearest.dequantize()).double() @ statistics.mean[0]) if bias else None
    ours = output_error(weight, made.codes, made.scale, made.bias_correction, x, bias)
    theirs = output_error(weight, nearest.codes, nearest.scale, corrected, x, bias)
    # The objective is damped by a thousandth of the mean variance: that much may be lost where errors are tiny.
    slack = 2e-3 * (weight**2).sum(1).double() * x.double().pow(2).mean() / (2 ** (2 * width - 2)) + 1e-9
    assert bool((ours <= theirs + slack).all())


def test_finds_the_best_codes_of_a_small_layer():
    """Against every assignment of codes, at the scale that was chosen: coordinate descent ends at most 5 % above the best."""
    generator = torch.Generator().manual_seed(3)
    excess = []
    for _ in range(12):
        x = torch.randn(400, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
        weight = torch.randn(1, 5, generator=generator)
        made = reconstruct_weight(weight, Format("int", 2), statistics_of(x))
        covariance = statistics_of(x).covariance[0]

        def error(codes, weight=weight, scale=made.scale, covariance=covariance):
            change = weight[0].double() - torch.tensor(codes).double() * scale.double()
            return float(change @ covariance @ change)

        best = min(error(codes) for codes in itertools.product((-1, 0, 1), repeat=5))
        excess.append(error(made.codes[0].tolist()) / best - 1)
    assert sorted(excess)[len(excess) // 2] < 0.05


def test_bias_correction_leaves_no_mean_change():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(500, 7, generator=generator)
    weight = torch.randn(4, 7, generator=generator)
    made = reconstruct_weight(weight, Format("int", 3), statistics_of(x))
    change = (weight - made.dequantize()).double() @ x.double().T
    assert torch.allclose(change.mean(1), made.bias_correction.double(), atol=1e-6)


def test_dead_inputs_and_zero_channels_are_defined():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    weight[1] = 0
    made = reconstruct_weight(weight, Format("int", 4), statistics_of(x))
    assert bool(torch.isfinite(made.scale).all()) and bool((made.scale > 0).all())
    assert not bool(made.codes[1].any())
    constant = reconstruct_weight(weight, Format("int", 4), statistics_of(torch.ones(10, 4)))
    assert bool(torch.isfinite(constant.dequantize()).all())


def test_nan_weights_are_refused_by_name():
    weight = torch.full((2, 3), float("nan"))
    with pytest.raises(DataError, match="layer x"):
        reconstruct_weight(weight, Format("int", 4), statistics_of(torch.randn(10, 3)), "layer x")


def test_statistics_are_those_of_the_layers_inputs(digits):
    """The covariance predicts the mean squared output of every layer: W C W' + (W mean)^2, bias aside."""
    prepared, splits = digits
    inputs = splits.calibrate[0]
    statistics = input_statistics(prepared.graph, inputs.split(64))
    assert statistics.keys() == {layer.name for layer in prepared.spec}
    outputs: dict[str, torch.Tensor] = {}
    graph = prepared.graph.replace(
        [n.with_attributes(clamp=None) if n.layer == "stem.conv" else n for n in prepared.graph.nodes]
    )
    run_float(graph, inputs, lambda node, value: outputs.update({node.layer: value}) if node.layer else None)
    node = next(n for n in graph.layers if n.layer == "stem.conv")
    bias = graph.parameters[node.bias].reshape(1, -1, 1, 1)
    power = (outputs["stem.conv"] - bias).double().pow(2).mean((0, 2, 3))  # 8 x 8 outputs: every position is taken
    rows = graph.parameters[node.weight].double().reshape(1, 16, -1)
    one = statistics["stem.conv"]
    predicted = ((rows @ one.covariance) * rows).sum(2)[0] + (rows @ one.mean[..., None])[0, :, 0] ** 2
    assert torch.allclose(power, predicted, rtol=1e-4)


def test_low_widths_keep_the_network_better_than_nearest_rounding(digits, tmp_path):
    """3-bit weights of the whole network, on digits that neither saw: KL to the float network falls at least threefold."""
    from dataclasses import replace

    from haqsearch.evaluate import float_logits, score_logits
    from haqsearch.evaluate.metrics import in_batches
    from haqsearch.runtime import run_program

    prepared, splits = digits
    policy = Policy.uniform(prepared.spec, Choice.parse("w3a8"))
    inputs, labels = splits.report
    reference = float_logits(prepared.graph, inputs)
    kl = {}
    for preset in ("plain", "fast"):
        program = replace(prepared, weight=bank_of(prepared.graph, preset, splits.calibrate[0])).lower(policy)
        logits = in_batches(lambda x, program=program: run_program(program, x), inputs)
        kl[preset] = score_logits(logits, labels, reference).kl
    assert kl["fast"] < kl["plain"] / 3, kl


def test_kept_weights_are_found_again_and_only_for_the_same_network(digits, tmp_path):
    prepared, splits = digits
    inputs, formats = splits.calibrate[0], [Format("int", 3), Format("int", 5)]
    pairs = [(layer.name, format) for layer in prepared.spec for format in formats]
    first = bank_of(prepared.graph, "fast", inputs, tmp_path)
    said: list[str] = []
    first.prepare(pairs, said.append)
    assert len(said) == len(formats)
    again = bank_of(prepared.graph, "fast", inputs, tmp_path)
    assert again.made.keys() == first.made.keys()
    for key, weight in first.made.items():
        assert torch.equal(again.made[key].codes, weight.codes) and torch.equal(again.made[key].scale, weight.scale)
        assert torch.equal(again.made[key].bias_correction, weight.bias_correction)
    again.prepare(pairs, said.append)
    assert len(said) == len(formats), "nothing is made twice"
    assert not bank_of(prepared.graph, "fast", inputs[:-1], tmp_path).made, "other data, other weights"


def test_network_order_makes_up_for_earlier_layers(digits):
    """Narrow weights and activations everywhere: against layer by layer, KL on unseen digits falls; the graph is untouched."""
    from dataclasses import replace

    from haqsearch.evaluate import float_logits, score_logits
    from haqsearch.evaluate.metrics import in_batches
    from haqsearch.runtime import run_program

    prepared, splits = digits
    before = prepared.graph.digest
    inputs, labels = splits.report
    reference = float_logits(prepared.graph, inputs)
    gains = []
    for pair in ("w2a8", "w3a4"):
        policy = Policy.uniform(prepared.spec, Choice.parse(pair))
        by_layer = replace(prepared, weight=bank_of(prepared.graph, "fast", splits.calibrate[0]))
        kl = []
        for network in (by_layer, prepared.in_order(policy, splits.calibrate[0])):
            program = network.lower(policy)
            logits = in_batches(lambda x, program=program: run_program(program, x), inputs)
            kl.append(score_logits(logits, labels, reference).kl)
        gains.append(kl[1] / kl[0])
    assert prepared.graph.digest == before
    assert max(gains) < 0.9, gains


def test_network_order_without_quantization_error_before_it_is_layer_by_layer():
    """One layer on inputs that its format holds exactly: both problems are the same, so are the weights."""
    from torch import nn

    from haqsearch.graph import trace
    from haqsearch.graph.plan import make_plan
    from haqsearch.graph.ranges import calibrate
    from haqsearch.ptq import prepare
    from haqsearch.ptq.sequential import FloatOutputs, reconstruct_in_order

    torch.manual_seed(0)
    codes = torch.randint(0, 256, (512, 6)).float()
    codes[0, 0], codes[1, 0] = 0, 255  # the whole range is seen, so the scale is exactly 1
    model = nn.Linear(6, 5)
    graph = prepare(trace(model, codes[:2], "one"))
    ranges = calibrate(graph, [codes])
    policy = Policy({graph.layers[0].layer: Choice.parse("w3a8")})
    (made,) = reconstruct_in_order(make_plan(graph), policy, ranges, FloatOutputs(graph, codes)).values()
    alone = reconstruct_weight(model.weight.detach(), Format("int", 3), statistics_of(codes))
    assert ranges.params(graph.input.name, Format("uint", 8)).scale == 1.0
    assert torch.equal(made.codes, alone.codes)
    assert torch.allclose(made.bias_correction, alone.bias_correction, atol=1e-2)


def test_what_is_kept_of_the_float_network_is_made_anew_for_other_inputs():
    from networks import prepared, samples

    torch.manual_seed(0)
    model, one, other = Beside().eval(), samples((8,), 256, 0), samples((8,), 256, 1)
    network = prepared(model, one)
    policy = Policy.uniform(network.spec, Choice.parse("w2a8"))

    def weights(of, inputs):
        rounded = of.in_order(policy, inputs, quick=True)
        return [rounded.weight(node.layer, None).dequantize() for node in network.graph.layers]

    first, again, elsewhere = weights(network, one), weights(network, one), weights(network, other)
    fresh = weights(prepared(model, one), other)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert all(a.equal(b) for a, b in zip(elsewhere, fresh, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, elsewhere, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 300), st.integers(0, 999))
def test_squares_are_the_whole_product(groups, count, size, seed):
    """Of integers, whose sums float32 holds exactly, on both sides of the diagonal."""
    rows = torch.randint(-9, 10, (groups, count, size), generator=torch.Generator().manual_seed(seed)).float()
    assert squares(rows).equal(rows.transpose(1, 2) @ rows)


WIDTHS = st.sampled_from([2, 4, 8])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(WIDTHS, WIDTHS, WIDTHS, WIDTHS, WIDTHS), min_size=6, max_size=6), st.booleans())
def test_policies_that_begin_alike_share_weights_and_all_are_as_if_rounded_alone(widths, few):
    from networks import prepared, samples

    from haqsearch.ptq.sequential import FloatOutputs

    torch.manual_seed(0)
    inputs = samples((8,), 64, 0)
    network = prepared(Beside().eval(), inputs)
    shared = FloatOutputs(network.graph, inputs)
    shared.made.most = 100 if few else shared.made.most  # bytes: no room for one policy's
    for first, second, wide, shallow, deep in [*widths, *widths[::-1]]:
        choices = {"first": (first, shallow), "second": (second, deep), "wide": (wide, shallow)}
        policy = Policy({layer: Choice.parse(f"w{w}a{a}") for layer, (w, a) in choices.items()})
        made = network.rounded_in_order(policy, shared)
        alone = network.rounded_in_order(policy, FloatOutputs(network.graph, inputs))
        for layer in choices:
            one, other = (of.weight(layer, None) for of in (made, alone))
            assert one.codes.equal(other.codes) and one.scale.equal(other.scale)
            assert one.bias_correction.equal(other.bias_correction)
    assert shared.made.bytes <= shared.made.most


class Beside(torch.nn.Module):
    """A narrow branch, and a wide one that can make up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)
        self.wide = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) + self.wide(x)


def test_a_layer_makes_up_for_what_is_lost_beside_it(monkeypatch):
    """The narrow branch has 2-bit weights: with the wide one made for the sum, not for itself, the sum is closer to float's."""
    from networks import prepared, samples

    from haqsearch.graph import run_float
    from haqsearch.ptq import sequential
    from haqsearch.runtime import run_program

    for seed in range(3):
        torch.manual_seed(seed)
        inputs, network = samples((8,), 256, seed), prepared(Beside().eval(), samples((8,), 256, seed))
        policy = Policy.uniform(network.spec, Choice.parse("w2a8"), {"wide": Choice.parse("w8a8")})
        wanted, errors = run_float(network.graph, inputs).detach(), []
        for alone in (True, False):
            with monkeypatch.context() as patch:
                if alone:
                    patch.setattr(sequential, "_beside", lambda graph: {})
                program = network.in_order(policy, inputs).lower(policy)
            errors.append(float((run_program(program, inputs) - wanted).pow(2).mean()))
        assert errors[1] < 0.9 * errors[0], errors


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_rows_of_a_convolution_are_its_patches_at_drawn_positions(kernel, stride, padding, dilation, groups, seed):
    """Rows times flattened weights are the convolution's outputs, at as many positions of each sample as were asked for."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (3, 4, 9, 8), generator=generator).float()
    model = torch.nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randint(-3, 4, model.weight.shape, generator=generator))
        graph = prepare(trace(model, x, "one"))
        (layer,) = graph.layers
        outputs = (
            model(x).flatten(2).permute(0, 2, 1).reshape(-1, groups, 8 // groups)
        )  # every position of every sample
    weight = model.weight.detach()
    chosen = draw_positions(output_size(layer, weight, x), torch.Generator().manual_seed(seed), positions=5)
    drawn = layer_rows(layer, weight, x, chosen)
    positions = outputs.shape[0] // 3
    assert drawn.shape[1] == 3 * min(5, positions)
    drawn = drawn[:, :, row_order(model.weight)]
    products = torch.einsum("grk,gnk->rgn", drawn, model.weight.detach().reshape(groups, 8 // groups, -1))
    chosen = torch.randperm(positions, generator=torch.Generator().manual_seed(seed))[:5]
    wanted = outputs.reshape(3, positions, groups, -1)[:, chosen].reshape(products.shape)
    assert torch.equal(products, wanted)


@pytest.mark.parametrize("text", ["w8a2", "w2a2", "w3a8"])
def test_inputs_that_are_always_the_same_have_defined_weights(text):
    """Large and constant: their variance is what float32 sums are off, of either sign."""
    from networks import prepared

    from haqsearch.runtime import run_program

    torch.manual_seed(0)
    inputs = torch.full((300, 6), 1234.567)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    network = prepared(model, inputs)
    policy = Policy.uniform(network.spec, Choice.parse(text))
    for quick in (True, False):
        program = network.in_order(policy, inputs, quick).lower(policy)
        assert bool(run_program(program, inputs).isfinite().all())
