"""Each sentence of the specification has a program that breaks it, and that sentence is what is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import SMALL, random_policy, small

from haqsearch.errors import ModelError
from haqsearch.runtime import verify
from haqsearch.spec import Format


@pytest.fixture(scope="module")
def good():
    ready = small("shortcut")
    return ready.lower(random_policy(ready, 1))


@pytest.mark.parametrize("name", SMALL)
def test_what_lowering_gives_is_valid(name):
    ready = small(name)
    verify(ready.lower(random_policy(ready, 8)))


def with_step(program, kind, **changes):
    """The first instruction of a kind changed."""
    position = next(i for i, step in enumerate(program.instructions) if step.op == kind)
    step = replace(program.instructions[position], **changes)
    return replace(
        program, instructions=(*program.instructions[:position], step, *program.instructions[position + 1 :])
    )


def first(program, op):
    return next(step for step in program.instructions if step.op == op)


def with_tensor(program, name, **changes):
    return replace(program, tensors={**program.tensors, name: replace(program.tensors[name], **changes)})


def with_constant(program, key, change):
    return replace(program, constants={**program.constants, key: change(program.constants[key].clone())})


def put(value):
    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


def unknown_operation(program):
    return with_step(program, "add", op="subtract")


def undefined_input(program):
    return with_step(program, "conv2d", inputs=("nothing:uint8",))


def read_before_it_is_given(program):
    steps = list(program.instructions)
    return replace(program, instructions=(steps[1], steps[0], *steps[2:]))


def given_twice(program):
    step = first(program, "conv2d")
    return replace(program, instructions=(*program.instructions, step))


def no_tensor_info(program):
    name = first(program, "conv2d").outputs[0]
    return replace(program, tensors={key: info for key, info in program.tensors.items() if key != name})


def output_not_given(program):
    return replace(program, instructions=program.instructions[:-1])


def float_inside(program):
    return with_tensor(program, first(program, "conv2d").outputs[0], format=Format("float", 32))


def another_scale_behind_a_move(program):
    name = first(program, "slice").outputs[0]
    return with_tensor(program, name, scale=program.tensors[name].scale * 2)


def another_zero_point_behind_a_move(program):
    name = first(program, "pad").outputs[0]
    return with_tensor(program, name, zero_point=program.tensors[name].zero_point + 1)


def weight_too_large(program):
    step = first(program, "conv2d")
    assert step.weight_format.width < 8
    return with_constant(program, f"{step.name}.weight", put(step.weight_format.code_max + 1))


def lowest_weight(program):
    step = first(program, "conv2d")
    return with_constant(program, f"{step.name}.weight", put(step.weight_format.code_min - 1))


def float_weights(program):
    return with_constant(program, f"{first(program, 'conv2d').name}.weight", lambda weight: weight.float())


def float_bias(program):
    return with_constant(program, f"{first(program, 'conv2d').name}.bias", lambda bias: bias.float())


def no_weight_format(program):
    return with_step(program, "conv2d", weight_format=None)


def bias_overflows(program):
    return with_constant(program, f"{first(program, 'conv2d').name}.bias", put(2**31 - 1))


def bound_too_small(program):
    attributes = first(program, "linear").attributes
    return with_step(program, "linear", attributes={**attributes, "bound": attributes["bound"] - 1})


def float_multiplier(program):
    return with_constant(program, f"{first(program, 'conv2d').outputs[0]}.multiplier", lambda m: m.float())


def offsets_of_another_shape(program):
    return with_constant(program, f"{first(program, 'conv2d').outputs[0]}.offset", lambda m: m[1:])


def shift_of_zero(program):
    return with_constant(program, f"{first(program, 'conv2d').outputs[0]}.shift", put(0))


def shift_too_long(program):
    return with_constant(program, f"{first(program, 'add').outputs[0]}.shift", put(63))


def negative_multiplier(program):
    return with_constant(program, f"{first(program, 'conv2d').outputs[0]}.multiplier", put(-1))


def multiplier_too_large(program):
    return with_constant(program, f"{first(program, 'avg_pool2d').outputs[0]}.multiplier", put(2**31))


def clamp_outside_the_format(program):
    name = first(program, "conv2d").outputs[0]
    return with_tensor(program, name, high=program.tensors[name].format.code_max + 1)


def clamp_reversed(program):
    return with_tensor(program, first(program, "conv2d").outputs[0], low=9, high=8)


def zero_point_is_no_code(program):
    return with_tensor(program, first(program, "add").outputs[0], zero_point=-1)


def scale_is_not_positive(program):
    return with_tensor(program, first(program, "add").outputs[0], scale=-1.0)


def scale_is_no_float32(program):
    return with_tensor(program, first(program, "add").outputs[0], scale=0.1)


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (unknown_operation, "unknown operation 'subtract'"),
        (undefined_input, "reads a value that no earlier instruction gives"),
        (read_before_it_is_given, "reads a value that no earlier instruction gives"),
        (given_twice, "gives a value that is there already"),
        (no_tensor_info, "gives a value without a TensorInfo"),
        (output_not_given, "no instruction gives the output"),
        (float_inside, "mixes floats and integers"),
        (another_scale_behind_a_move, "moves codes from one scale to another"),
        (another_zero_point_behind_a_move, "moves codes from one scale to another"),
        (weight_too_large, "a weight is no int"),
        (lowest_weight, "a weight is no int"),
        (float_weights, "weights are not integers"),
        (float_bias, "weights are not integers"),
        (no_weight_format, "weights are not integers"),
        (bias_overflows, "an accumulator can leave int32"),
        (bound_too_small, "the accumulator bound is too small"),
        (float_multiplier, "an epilogue is not in integers"),
        (offsets_of_another_shape, "an epilogue is not in integers"),
        (shift_of_zero, "a multiplier or shift is out of range"),
        (shift_too_long, "a multiplier or shift is out of range"),
        (negative_multiplier, "a multiplier or shift is out of range"),
        (multiplier_too_large, "a multiplier or shift is out of range"),
        (clamp_outside_the_format, "its clamp leaves the format's codes"),
        (clamp_reversed, "its clamp leaves the format's codes"),
        (zero_point_is_no_code, "its zero point is no code"),
        (scale_is_not_positive, "its scale is no positive float32"),
        (scale_is_no_float32, "its scale is no positive float32"),
    ],
)
def test_a_broken_program_is_refused(good, corrupt, sentence):
    verify(good)
    with pytest.raises(ModelError, match="not a valid integer program") as raised:
        verify(corrupt(good))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_layer_is_named(good):
    with pytest.raises(ModelError, match=r"^shortcut: stem: "):
        verify(weight_too_large(good))


def test_a_missing_constant_is_refused(good):
    for kind in ("weight", "bias"):
        key = f"{first(good, 'conv2d').name}.{kind}"
        broken = replace(good, constants={k: v for k, v in good.constants.items() if k != key})
        with pytest.raises(ModelError, match="not a valid integer program"):
            verify(broken)
    key = f"{first(good, 'add').outputs[0]}.shift"
    with pytest.raises(ModelError, match="not a valid integer program"):
        verify(replace(good, constants={k: v for k, v in good.constants.items() if k != key}))


def test_verification_does_not_change_the_program(good):
    before = {key: value.clone() for key, value in good.constants.items()}
    verify(good)
    assert all(torch.equal(value, before[key]) for key, value in good.constants.items())
