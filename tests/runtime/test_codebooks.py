"""Networks whose weights are stored in other codes than they are computed with - codebooks, signs, steps by blocks: integer
programs as any other, exact on every backend, in files and exports."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import INTEGER, inputs, random_policy, small

from haqsearch.errors import ModelError
from haqsearch.evaluate import Evaluator, WeightBank, float_logits, score_logits
from haqsearch.ptq.pipeline import Pipeline
from haqsearch.qat import FinetuneSettings, finetune, load_finetuned, save_finetuned
from haqsearch.quant import QTensor
from haqsearch.quant.steps import stored
from haqsearch.runtime import load_program, run_codes, run_program, save_program
from haqsearch.runtime.pieces import Memo
from haqsearch.runtime.verify import verify
from haqsearch.spec import Choice, Format, Policy
from haqsearch.spec.ptq import PTQ_PRESETS

from .oracle import oracle_codes

BLOCKS = [
    "vsq4",
    "mx4",
    "mx6",
    "mx9",
    "mxfp4",
    "mxfp6",
    "mxfp8",
    "mxint8",
    "int2:group=16",
    "int4:group=5",
    "int8:group=32",
]
BOOKS = [*(f"kmeans{width}" for width in range(1, 9)), "binary", "ternary", *BLOCKS]


def mixed(ready, seed):
    """Random widths, about every other layer stored in other codes."""
    policy, generator = random_policy(ready, seed), torch.Generator().manual_seed(seed)
    for layer in ready.spec.quantizable:
        pick = int(torch.randint(2 * len(BOOKS), (1,), generator=generator))
        if pick < len(BOOKS):
            policy = policy.replace(layer.name, Format.parse(BOOKS[pick]))
    return policy


def in_turn(ready, weights):
    """8-bit activations, and one of ``weights`` after the other."""
    choices = itertools.cycle(Choice.parse(f"{text}/uint8") for text in weights)
    return Policy({layer.name: next(choices) for layer in ready.spec})


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(INTEGER)), st.integers(0, 10**6))
def test_every_backend_gives_the_codes_of_the_oracle(name, seed):
    ready = small(name)
    program, x = ready.lower(mixed(ready, seed)), inputs(name, 9, seed)
    codes = run_codes(program, x, "reference")
    assert torch.equal(codes, oracle_codes(program, x).to(codes.dtype))
    native = pytest.importorskip("haqsearch.runtime.native")
    assert native
    assert torch.equal(run_codes(program, x, "native"), codes)


@pytest.mark.parametrize("seed", range(2))
def test_a_file_gives_the_same_program(digits, tmp_path, seed):
    ready, splits = digits
    program = ready.lower(mixed(ready, seed))
    save_program(program, tmp_path / "m.safetensors")
    loaded = load_program(tmp_path / "m.safetensors")
    formats = [step.weight_format for step in program.instructions]
    assert [step.weight_format for step in loaded.instructions] == formats
    assert torch.equal(run_codes(loaded, splits.search[0]), run_codes(program, splits.search[0]))
    assert loaded.weight_bytes == program.weight_bytes


@pytest.mark.parametrize("weights", [["kmeans3"], ["vsq4", "int4:group=32", "mxfp4", "mx6"]], ids=str)
def test_onnx_runtime_computes_the_codes(digits, tmp_path, weights):
    from tests.export.test_onnx import check_equal, exported

    ready, splits = digits
    program = ready.lower(in_turn(ready, weights))
    check_equal(program, exported(program, tmp_path), splits.report[0])


@pytest.mark.parametrize("text", BLOCKS)
def test_what_a_program_stores_is_what_the_size_says(digits, text):
    """Packed into the format and read back, every weight is the code the program computes with, and the bytes are all counted."""
    from hwmodels import memory

    ready, _ = digits
    policy = Policy.uniform(ready.spec, Choice.parse(f"{text}/uint8"))
    program = ready.lower(policy)
    made = 0
    for step in (step for step in program.instructions if step.layer):
        codes, layer = program.constants[f"{step.name}.weight"], ready.spec[step.layer]
        packed = stored(codes, step.weight_format).pack()
        assert torch.equal(QTensor.unpack(packed, step.weight_format, codes.shape).dequantize(), codes.float())
        parts = [
            part for name, part in packed.items() if (text, name) != ("vsq4", "scale")
        ]  # of the channels: all ones
        bytes_of_layer = sum(part.nbytes for part in parts) + 4 * len(codes) * (1 + layer.has_bias)
        assert bytes_of_layer == memory.size_bytes(layer, policy[step.layer])
        made += sum(part.nbytes for part in parts)
    assert program.weight_bytes == made


def test_weights_that_no_steps_divide_are_refused(digits):
    ready, _ = digits
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("vsq4/uint8")))
    step = next(step for step in program.instructions if step.layer)
    codes = program.constants[f"{step.name}.weight"].clone()
    codes.view(-1)[:2] = torch.tensor([105, 11], dtype=torch.int8)
    with pytest.raises(ModelError, match="its weights cannot be stored as vsq4"):
        verify(replace(program, constants={**program.constants, f"{step.name}.weight": codes}))


def test_weight_bytes_are_those_the_budget_counts(digits):
    """But for biases and scales: indices and books."""
    from hwmodels import memory

    ready, _ = digits
    policy = Policy.uniform(ready.spec, Choice.parse("kmeans3/uint8"))
    counted = sum(
        memory.size_bytes(layer, policy[layer.name]) - 4 - 4 * layer.out_channels for layer in ready.spec.quantizable
    )
    assert ready.lower(policy).weight_bytes == counted


def test_a_program_with_more_codes_than_the_book_holds_is_refused(digits):
    ready, _ = digits
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("kmeans2/uint8")))
    step = next(step for step in program.instructions if step.layer)
    codes = program.constants[f"{step.name}.weight"].clone()
    codes.view(-1)[:5] = torch.tensor([1, 2, 3, 4, 5], dtype=torch.int8)
    with pytest.raises(ModelError, match="more different weights than kmeans2 has"):
        verify(replace(program, constants={**program.constants, f"{step.name}.weight": codes}))


def test_more_bits_lose_less(digits):
    ready, splits = digits

    class Free:
        metrics = ()

        def costs(self, policy):
            return {}

    evaluator = Evaluator(ready, splits, Free(), ())
    kl = [evaluator.evaluate(Policy.uniform(ready.spec, Choice.parse(f"kmeans{b}/uint8"))).kl for b in (2, 4, 8)]
    assert kl[0] > kl[1] > kl[2]


def test_rounding_that_looks_at_inputs_keeps_the_book_and_loses_less(digits):
    ready, splits = digits
    fast = WeightBank(Pipeline(ready.graph, PTQ_PRESETS["fast"]), splits.calibrate[0])
    reference = float_logits(ready.graph, splits.search[0])
    small_layer = ready.spec.quantizable[1].name
    for layer, text in [(small_layer, "binary"), (small_layer, "ternary"), (small_layer, "int2:tensor")]:
        near, made = ready.weight(layer, Format.parse(text)), fast(layer, Format.parse(text))
        assert set(made.codes.unique().tolist()) <= set(near.codes.unique().tolist())
        assert text != "int2:tensor" or torch.equal(made.scale, near.scale)
    policy = Policy.uniform(ready.spec, Choice.parse("kmeans2/uint8"))
    for layer, choice in policy.items():
        near, made = ready.weight(layer, choice.weight), fast(layer, choice.weight)
        assert set(made.codes.unique().tolist()) <= set(near.codes.unique().tolist())
        assert torch.equal(made.scale, near.scale)
    before, after = (
        score_logits(run_program(network.lower(policy), splits.search[0]), splits.search[1], reference).kl
        for network in (ready, replace(ready, weight=fast, memo=Memo()))
    )
    print(f"kmeans2: kl {before:.3f}, rounded to the outputs {after:.3f}")
    assert after < before


def test_rounding_that_looks_at_inputs_keeps_the_steps_loses_less_and_is_kept_on_disk(digits, tmp_path):
    ready, splits = digits
    pipeline = Pipeline(ready.graph, PTQ_PRESETS["fast"])
    fast = WeightBank(pipeline, splits.calibrate[0], tmp_path)
    policy = in_turn(ready, ["int2:group=16", "mx4", "int2:group=8"])
    fast.prepare((layer, choice.weight) for layer, choice in policy.items())
    reference = float_logits(ready.graph, splits.search[0])
    for layer, choice in policy.items():
        near, made = ready.weight(layer, choice.weight), fast(layer, choice.weight)
        assert torch.equal(made.step, near.step) and not (made.codes.int() % made.step.int()).any()
    before, after = (
        score_logits(run_program(network.lower(policy), splits.search[0]), splits.search[1], reference).kl
        for network in (ready, replace(ready, weight=fast, memo=Memo()))
    )
    print(f"blocks: kl {before:.4f}, rounded to the outputs {after:.4f}")
    assert after < before
    again = WeightBank(pipeline, splits.calibrate[0], tmp_path)
    assert again.made.keys() == fast.made.keys()
    for key, made in again.made.items():
        for part in ("codes", "scale", "bias_correction", "step"):
            assert torch.equal(getattr(made, part), getattr(fast.made[key], part))


def test_rounding_in_network_order_loses_less(digits):
    ready, splits = digits
    policy = in_turn(ready, ["int2:group=16", "mx4", "kmeans2"])
    made = ready.in_order(policy, splits.calibrate[0])
    for layer, choice in policy.items():
        assert made.weight(layer, choice.weight).step is None or stored(
            made.weight(layer, choice.weight).codes, choice.weight
        )
    x, labels = splits.search
    reference = float_logits(ready.graph, x)
    before, after = (score_logits(run_program(n.lower(policy), x), labels, reference).kl for n in (ready, made))
    assert after < before


@pytest.mark.parametrize("steps", ["nearest", "stochastic", "adaround"])
def test_other_ways_of_rounding_leave_what_can_be_stored(digits, steps):
    ready, splits = digits
    bank = WeightBank(Pipeline(ready.graph, ("fold_bn", steps, "bias_correct")), splits.calibrate[0])
    layer = ready.spec.quantizable[1].name
    for text in ("vsq4", "mxfp4", "int3:group=7"):
        made = bank(layer, Format.parse(text))
        assert made.bias_correction is not None and torch.equal(made.codes, ready.weight(layer, made.format).codes)


def test_training_keeps_the_steps_and_loses_less(digits, tmp_path):
    ready, splits = digits
    policy = in_turn(ready, ["int2:group=16", "mx4", "mxfp4"])
    weights = {layer: ready.weight(layer, choice.weight) for layer, choice in policy.items()}
    settings = FinetuneSettings(40, learning_rate=1e-3)
    tuned = finetune(ready.graph, ready.plan, policy, ready.ranges, weights, splits, settings)
    assert any(not torch.equal(weight.codes, weights[layer].codes) for layer, weight in tuned.weights.items())
    for layer, weight in tuned.weights.items():
        assert torch.equal(weight.step, weights[layer].step) and weight.format == policy[layer].weight
    x, labels = splits.report
    reference = float_logits(ready.graph, x)
    before, after = (
        score_logits(run_program(network.lower(policy), x), labels, reference).kl
        for network in (ready, ready.finetuned(tuned))
    )
    print(f"blocks on held-out digits: kl {before:.3f} -> {after:.3f}")
    assert after < before
    save_finetuned(tuned, tmp_path / "t.safetensors")
    loaded = load_finetuned(tmp_path / "t.safetensors", ready.graph, weights)
    assert all(torch.equal(loaded.weights[layer].codes, w.codes) for layer, w in tuned.weights.items())


def test_training_keeps_the_codebook_and_loses_less(digits, tmp_path):
    ready, splits = digits
    policy = Policy.uniform(ready.spec, Choice.parse("kmeans2/uint8"))
    weights = {layer: ready.weight(layer, choice.weight) for layer, choice in policy.items()}
    tuned = finetune(
        ready.graph, ready.plan, policy, ready.ranges, weights, splits, FinetuneSettings(40, learning_rate=1e-3)
    )
    for layer, weight in tuned.weights.items():
        assert set(weight.codes.unique().tolist()) <= set(weights[layer].codes.unique().tolist())
    x, labels = splits.report
    reference = float_logits(ready.graph, x)
    before, after = (
        score_logits(run_program(network.lower(policy), x), labels, reference).kl
        for network in (ready, ready.finetuned(tuned))
    )
    print(f"kmeans2 on held-out digits: kl {before:.3f} -> {after:.3f}")
    assert after < 0.8 * before
    save_finetuned(tuned, tmp_path / "t.safetensors")
    loaded = load_finetuned(tmp_path / "t.safetensors", ready.graph, weights)
    assert all(torch.equal(loaded.weights[layer].codes, w.codes) for layer, w in tuned.weights.items())
