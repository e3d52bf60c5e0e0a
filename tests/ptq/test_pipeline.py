from __future__ import annotations

import pytest
import torch
from networks import inputs, traced

from haqsearch.errors import DataError, ModelError
from haqsearch.evaluate import WeightBank, prepare_network, score_logits
from haqsearch.evaluate.metrics import float_logits, in_batches
from haqsearch.graph import run_float
from haqsearch.models.digits_cnn import digits_cnn
from haqsearch.ptq import prepare
from haqsearch.ptq.equalize import equalize
from haqsearch.ptq.pipeline import Pipeline
from haqsearch.quant import quantize_weight
from haqsearch.runtime import run_program
from haqsearch.spec import Choice, Format, Policy
from haqsearch.spec.ptq import PTQ_PRESETS, PTQ_STEPS

W3 = Format("int", 3)
ROUNDINGS = [name for name, step in PTQ_STEPS.items() if step.stage == "rounding"]


def pipeline(name, *steps, data=True):
    made = Pipeline(traced(name), ("fold_bn", *steps))
    if data:
        made.collect([inputs(name, 60, 1)])
    return made


def test_plain_is_nearest_rounding_of_the_folded_network():
    made = pipeline("conv_norm", "nearest", data=False)
    assert made.graph.digest == prepare(traced("conv_norm")).digest
    assert not made.needs_data
    for node in made.graph.layers:
        wanted, found = quantize_weight(made.graph.parameters[node.weight], W3), made.weight(node.layer, W3)
        assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
        assert found.bias_correction is None


def test_equalize_is_done_before_anything_is_measured():
    made = pipeline("depthwise", "equalize", "nearest", data=False)
    assert made.graph.digest == equalize(prepare(traced("depthwise"))).digest


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("correction", [True, False])
def test_a_bias_is_corrected_where_a_step_says_so(rounding, correction):
    """And where there is a bias: ``tie`` has a layer without."""
    made = pipeline("tie", rounding, *(["bias_correct"] if correction else []))
    has_bias = {node.layer: bool(node.bias) for node in made.graph.layers}
    assert set(has_bias.values()) == {True, False}
    for layer, bias in has_bias.items():
        assert (made.weight(layer, W3).bias_correction is not None) is (correction and bias)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_pass_yields_all_that_is_wanted(rounding, monkeypatch):
    """Ranges and statistics come from one pass over the calibration inputs, and weights from no other."""
    from haqsearch.data import Splits
    from haqsearch.graph import ranges

    passes = []
    monkeypatch.setattr(ranges, "run_float", lambda graph, x, *a: passes.append(len(x)) or run_float(graph, x, *a))
    monkeypatch.setattr("haqsearch.ptq.pipeline.run_float", lambda *a: pytest.fail("a second pass"))
    part = (torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64))
    ready = prepare_network(
        digits_cnn().eval(), Splits(part, part, part, part), "net", ("fold_bn", rounding, "bias_correct")
    )
    ready.weight("classifier", W3)
    assert sum(passes) == 64


@pytest.mark.parametrize("steps", [("reconstruct",), ("adaround",), ("nearest", "bias_correct")])
def test_weights_that_need_data_are_refused_without(steps):
    with pytest.raises(DataError, match="need calibration data"):
        pipeline("tie", *steps, data=False).weight("stem", W3)


def test_stochastic_rounding_is_the_same_each_time_and_another_in_each_layer():
    one, two = (pipeline("depthwise", "stochastic") for _ in range(2))
    nearest = pipeline("depthwise", "nearest")
    for node in one.graph.layers:
        assert torch.equal(one.weight(node.layer, W3).codes, two.weight(node.layer, W3).codes)
    assert any(
        not torch.equal(one.weight(n.layer, W3).codes, nearest.weight(n.layer, W3).codes) for n in one.graph.layers
    )


def test_without_batch_norms_the_analytic_correction_is_refused():
    with pytest.raises(ModelError, match="bias_correct_norms finds no batch norms"):
        pipeline("conv_bias", "nearest", "bias_correct_norms", data=False)


def test_analytic_correction_moves_with_equalized_channels():
    """The correction is one of the output: dividing it by the layer's scale undoes the equalization."""
    plain = pipeline("conv_norm", "nearest", "bias_correct_norms", data=False)
    assert not plain.needs_data
    layer = plain.graph.layers[-1].layer
    even = pipeline("conv_norm", "equalize", "nearest", "bias_correct_norms", data=False)
    wide = Format("int", 8)
    for made in (plain, even):
        node = made.nodes[layer]
        weight = made.graph.parameters[node.weight].double()
        output = (weight.reshape(1, len(weight), -1) @ made.means[layer][..., None])[0, :, 0]
        if made is plain:
            expected = output
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-7)
    assert made.weight(layer, wide).bias_correction is not None


def test_kept_weights_of_one_method_are_not_another_methods(digits, tmp_path):
    prepared, splits = digits
    for steps in (PTQ_PRESETS["fast"], ("fold_bn", "adaround", "bias_correct"), ("fold_bn", "reconstruct")):
        bank = WeightBank(Pipeline(prepared.graph, steps), splits.calibrate[0], tmp_path)
        assert not bank.made, steps
        bank.prepare([("classifier", W3)])
        assert (
            WeightBank(Pipeline(prepared.graph, steps), splits.calibrate[0], tmp_path).made.keys() == bank.made.keys()
        )


def test_learned_and_corrected_rounding_keep_a_network_better_than_nearest(digits):
    """3-bit weights with one scale a layer, on digits that nothing was measured on. Each step divides the divergence by about
    three; the network is trained where the test runs, and at 4 bits which of two is better would depend on how."""
    from dataclasses import replace

    prepared, splits = digits
    policy = Policy.uniform(prepared.spec, Choice.parse("int3:tensor/uint8"))
    x, labels = splits.report
    reference = float_logits(prepared.graph, x)
    kl = {}
    for steps in (("nearest",), ("nearest", "bias_correct"), ("adaround", "bias_correct")):
        made = Pipeline(prepared.graph, ("fold_bn", *steps))
        made.collect(splits.calibrate[0].split(128))
        program = replace(prepared, weight=made.weight).lower(policy)
        kl[steps] = score_logits(in_batches(lambda v, p=program: run_program(p, v), x), labels, reference).kl
    assert kl[("nearest", "bias_correct")] < kl[("nearest",)]
    assert kl[("adaround", "bias_correct")] < 0.5 * kl[("nearest",)], kl
