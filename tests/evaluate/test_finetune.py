from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import INTEGER, inputs, random_policy, small

from haqsearch.errors import ModelError
from haqsearch.evaluate import float_logits, score_logits
from haqsearch.graph.apply import QuantizedNetwork, fake_quantize
from haqsearch.qat import FinetuneSettings, finetune, load_finetuned, save_finetuned
from haqsearch.quant import QParams, dequantize, quantize
from haqsearch.runtime import run_codes, run_program
from haqsearch.spec import Choice, Format, Policy


def chosen(ready, policy):
    return {layer: ready.weight(layer, choice.weight) for layer, choice in policy.items()}


def train(digits, policy, **settings):
    ready, splits = digits
    weights = chosen(ready, policy)
    return finetune(ready.graph, ready.plan, policy, ready.ranges, weights, splits, FinetuneSettings(**settings))


@pytest.fixture(scope="module")
def three_bits(digits):
    return Policy.uniform(digits[0].spec, Choice.parse("w3a3"))


def test_training_improves_a_policy_of_three_bits_on_held_out_digits(digits, three_bits):
    ready, splits = digits
    before = ready.graph.digest
    tuned = train(digits, three_bits, steps=60, learning_rate=1e-3)
    assert ready.graph.digest == before  # the input is untouched
    assert tuned.graph.digest != before
    x, labels = splits.report
    reference = float_logits(ready.graph, x)
    plain, better = (
        score_logits(run_program(network.lower(three_bits), x), labels, reference)
        for network in (ready, ready.finetuned(tuned))
    )
    print(
        f"w3a3 on held-out digits: kl {plain.kl:.3f} -> {better.kl:.3f}, {plain.accuracy:.3f} -> {better.accuracy:.3f}"
    )
    assert better.kl < 0.7 * plain.kl
    assert better.accuracy >= plain.accuracy


def test_the_same_seed_gives_the_same_weights(digits, three_bits):
    a, b, c = (train(digits, three_bits, steps=4, seed=seed) for seed in (7, 7, 8))
    assert a.graph.digest == b.graph.digest != c.graph.digest
    assert a.factors == b.factors != c.factors
    assert all(torch.equal(a.weights[layer].codes, b.weights[layer].codes) for layer in a.weights)


def test_what_was_trained_is_the_same_from_its_file(digits, three_bits, tmp_path):
    ready, splits = digits
    tuned = train(digits, three_bits, steps=4, learning_rate=1e-3)
    save_finetuned(tuned, tmp_path / "deep" / "tuned.safetensors")
    loaded = load_finetuned(tmp_path / "deep" / "tuned.safetensors", ready.graph, chosen(ready, three_bits))
    a, b = (run_codes(ready.finetuned(t).lower(three_bits), splits.search[0]) for t in (tuned, loaded))
    assert torch.equal(a, b)


def test_training_does_not_touch_torchs_random_state(digits, three_bits):
    state = torch.get_rng_state()
    train(digits, three_bits, steps=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_steps_change_nothing(digits, three_bits):
    tuned = train(digits, three_bits, steps=0)
    assert set(tuned.factors.values()) == {1.0}
    assert all(torch.equal(tuned.weights[layer].codes, w.codes) for layer, w in chosen(digits[0], three_bits).items())


def test_divergence_is_an_error_that_names_the_mend(digits, three_bits):
    with pytest.raises(ModelError, match=r"diverged at step \d+; lower qat\.learning_rate"):
        train(digits, three_bits, steps=20, learning_rate=1e30)


# -- the trainable copy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTEGER)
def test_the_trainable_copy_computes_what_the_program_computes(name):
    """With the weights, weight scales and rounded biases of the program. A float32 sum may fall on the other side of a tie."""
    ready = small(name)
    policy = random_policy(ready, 31, 4)
    program, x = ready.lower(policy), inputs(name, 200, 2)
    steps = {step.layer: step for step in program.instructions if step.layer}
    scales = {layer: program.constants[f"{step.name}.weight_scale"] for layer, step in steps.items()}
    weights = {layer: replace(w, scale=scales[layer]) for layer, w in chosen(ready, policy).items()}
    network = QuantizedNetwork(ready.graph, policy, ready.ranges, weights, ready.plan)
    with torch.no_grad():
        for node in ready.graph.layers:
            network.trained[node.weight.replace(".", "/")].copy_(weights[node.layer].dequantize())
            if node.bias:
                step = steps[node.layer]
                scale = scales[node.layer].double() * program.tensors[step.inputs[0]].scale
                network.trained[node.bias.replace(".", "/")].copy_(program.constants[f"{step.name}.bias"] * scale)
        copy = network(x)
    distance = ((copy - run_program(program, x)) / program.output_info.scale).round().abs()
    assert (distance <= 1).double().mean() >= 0.99
    assert distance.median() == 0


def test_every_weight_gets_a_gradient():
    ready = small("shortcut")
    policy = random_policy(ready, 3, 4)
    network = QuantizedNetwork(ready.graph, policy, ready.ranges, chosen(ready, policy), ready.plan)
    network(inputs("shortcut", 32)).square().sum().backward()
    for key, parameter in network.trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_fake_quantization_is_quantization_with_a_straight_gradient():
    params = QParams(Format("uint", 4), 0.25, 5)
    x = torch.linspace(-3, 4, 141, requires_grad=True)
    y = fake_quantize(x, params)
    assert torch.equal(y.detach(), dequantize(quantize(x.detach(), params), params))
    with torch.no_grad():
        assert torch.equal(fake_quantize(x, params), y)
    y.sum().backward()
    low, high = -5 * 0.25, 10 * 0.25
    inside = (x > low + 0.2) & (x < high - 0.2)
    outside = (x < low - 0.2) | (x > high + 0.2)
    assert (x.grad[inside] == 1).all()
    assert (x.grad[outside] == 0).all()
