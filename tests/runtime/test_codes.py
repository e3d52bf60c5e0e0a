from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FLOAT, INTEGER, SMALL, inputs, prepared, random_policy, small
from torch import nn

from haqsearch.errors import ModelError
from haqsearch.evaluate import float_logits
from haqsearch.evaluate.metrics import in_batches
from haqsearch.graph import run_float
from haqsearch.kernels import reference
from haqsearch.runtime import lower, run_codes, run_program
from haqsearch.spec import FLOAT32, Choice, Policy

from .oracle import oracle_codes


@cache
def program_of(name, seed):
    ready = small(name)
    return ready.lower(random_policy(ready, seed))


@pytest.mark.parametrize("name", SMALL)
def test_the_integer_program_equals_the_real_arithmetic_it_stands_for(name):
    for seed in range(2):
        program = program_of(name, seed)
        x = inputs(name, 64, 100 + seed)
        assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x).double())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(INTEGER)), st.integers(0, 10**6), st.integers(2, 8), st.floats(0.1, 30))
def test_so_does_any_policy_on_any_input(name, seed, low, spread):
    ready = small(name)
    program = ready.lower(random_policy(ready, seed, low))
    x = inputs(name, 8, seed) * spread  # far outside the calibrated range: clamps are part of the arithmetic
    assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_many_policies(name):
    ready = small(name)
    for seed in range(25):
        program, x = ready.lower(random_policy(ready, seed)), inputs(name, 64, seed)
        assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x).double())


@pytest.mark.parametrize("name", SMALL)
def test_eight_bits_are_close_to_float(name):
    ready = small(name)
    x = inputs(name, 64, 1)  # the calibration samples
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8")))
    expected = run_float(ready.graph, x)
    assert (run_program(program, x) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", FLOAT)
def test_float_regions_run_between_integer_layers(name):
    ready = small(name)
    steps = [step.op for step in ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8"))).instructions]
    assert "float" in steps
    assert {"conv2d", "linear"} & set(steps)
    if name not in {"normed_input", "embedding"}:  # these begin in float
        assert "dequantize" in steps


@pytest.mark.parametrize("name", ["shortcut", "concat", "unfused_relu", "tokens", "avg_pool_padded", "sigmoid", "lstm"])
def test_a_sample_gets_the_same_codes_alone_and_in_company(name):
    program, x = program_of(name, 3), inputs(name, 24, 9)
    together = run_codes(program, x)
    assert torch.equal(torch.cat([run_codes(program, sample) for sample in x.split(1)]), together)
    assert torch.equal(run_codes(program, x.flip(0)).flip(0), together)


@pytest.mark.parametrize("name", ["shortcut", "concat", "depthwise", "tokens"])
def test_the_number_of_threads_does_not_matter(name):
    program, x = program_of(name, 4), inputs(name, 200, 9)
    threads, codes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            codes.append(run_codes(program, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("name", INTEGER)
def test_every_value_keeps_inside_what_its_tensor_says(name, monkeypatch):
    program, x = program_of(name, 5), inputs(name, 32, 5)
    seen, epilogue = {}, reference.epilogue

    def watching(acc, offset, multiplier, shift, zero_point, low, high, dtype):
        assert acc.dtype == torch.int64
        assert int(acc.abs().max()) * int(multiplier.max()) + int(offset.abs().max()) < 2**63
        codes = epilogue(acc, offset, multiplier, shift, zero_point, low, high, dtype)
        seen[low, high] = (int(codes.min()), int(codes.max()))
        return codes

    monkeypatch.setattr(reference, "epilogue", watching)
    run_codes(program, x, "reference")
    assert seen
    assert all(low <= least and most <= high for (low, high), (least, most) in seen.items())


@pytest.mark.parametrize("name", INTEGER)
def test_constants_are_integers_but_for_the_scales_of_weights(name):
    constants = program_of(name, 6).constants
    floats = {key for key, value in constants.items() if value.is_floating_point()}
    assert floats == {key for key in constants if key.endswith(".weight_scale")}


def test_the_input_is_left_alone():
    x = inputs("shortcut", 4)
    before = x.clone()
    run_codes(program_of("shortcut", 1), x)
    assert torch.equal(x, before)


def test_the_batch_may_be_empty():
    assert run_codes(program_of("shortcut", 1), inputs("shortcut", 0)).shape == (0, 3)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (torch.zeros(2, 2, 6, 5), r"torch.float32 of \(2, 2, 6, 5\)"),
        (torch.zeros(2, 6, 6), r"torch.float32 of \(2, 6, 6\)"),
        (torch.zeros(2, 2, 6, 6, dtype=torch.float64), "torch.float64"),
        (torch.zeros(2, 2, 6, 6, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_inputs_of_another_shape_or_type_are_refused(x, got):
    with pytest.raises(ModelError, match=rf"shortcut takes float32 of shape \(batch, \*\(2, 6, 6\)\), not {got}"):
        run_program(program_of("shortcut", 1), x)


# -- what cannot be lowered -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide():
    """A linear layer whose 8-bit sums leave int32: 80,000 inputs, all weights of one sign."""
    model = nn.Sequential(nn.Linear(80_000, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    nn.init.constant_(model[0].weight, 0.5)
    return prepared(model, torch.rand(8, 80_000, generator=torch.Generator().manual_seed(0)), "wide")


def test_an_accumulator_that_could_leave_int32_is_refused_by_name(wide):
    with pytest.raises(ModelError, match=r"layer '0': an accumulator can reach 2590\d+, beyond int32, .*int8.*uint8"):
        wide.lower(Policy.uniform(wide.spec, Choice.parse("w8a8")))


def test_fewer_bits_make_it_fit_and_stay_exact(wide):
    program = wide.lower(Policy.uniform(wide.spec, Choice.parse("w7a8")))
    x = torch.rand(4, 80_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x))
    assert program.instructions[1].attributes["bound"] > 2**24  # float32 sums would not be exact


def test_a_layer_left_in_float_is_refused_by_name():
    ready = small("tie")
    policy = Policy({**Policy.uniform(ready.spec, Choice.parse("w8a8")), "head": Choice(FLOAT32, FLOAT32)})
    with pytest.raises(ModelError, match="layer 'head'"):
        ready.lower(policy)


def test_lowering_does_not_depend_on_what_was_lowered_before():
    ready = small("shortcut")
    policy = random_policy(ready, 11)
    first = ready.lower(policy)
    ready.lower(random_policy(ready, 12))
    again = lower(ready.graph, policy, ready.ranges, ready.weight)
    assert first.instructions == again.instructions
    assert first.tensors == again.tensors
    assert all(torch.equal(value, again.constants[key]) for key, value in first.constants.items())


def test_batches_do_not_change_the_logits():
    ready, x = small("shortcut"), inputs("shortcut", 33, 2)
    program = program_of("shortcut", 2)
    assert torch.equal(in_batches(lambda part: run_program(program, part), x, 7), run_program(program, x))
    torch.testing.assert_close(float_logits(ready.graph, x), run_float(ready.graph, x))


@pytest.mark.parametrize("name", ["conv_bias", "depthwise", "shortcut", "tokens"])
@pytest.mark.parametrize("text", ["int8:tensor/uint8", "int4:tensor/uint5"])
def test_a_layer_with_one_weight_scale_keeps_one(name, text):
    ready = small(name)
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse(text)))
    for step in program.instructions:
        if step.weight_format is not None:
            assert str(step.weight_format) == text.partition("/")[0]
            assert len(program.constants[f"{step.name}.weight_scale"].unique()) == 1
    x = inputs(name, 32, 7)
    assert torch.equal(run_codes(program, x).double(), oracle_codes(program, x))
