"""What a program takes, against what is predicted before there is one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import INTEGER, random_policy, small

from haqsearch.runtime.memory import peak_activation_bytes
from hwmodels import memory


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(INTEGER)), st.integers(0, 10**6), st.integers(2, 8))
def test_the_peak_of_the_activations_is_the_predicted_one(name, seed, low):
    ready = small(name)
    policy = random_policy(ready, seed, low)
    predicted = memory.ActivationMemory.of(ready.spec).peak(policy)
    assert peak_activation_bytes(ready.lower(policy)) == predicted


@pytest.mark.parametrize("name", INTEGER)
def test_packed_weights_take_what_the_size_says(name):
    ready = small(name)
    policy = random_policy(ready, 5)
    program = ready.lower(policy)
    size = sum(memory.size_bytes(layer, policy[layer.name]) for layer in ready.spec.layers)
    scales = sum(
        program.constants[f"{step.name}.weight_scale"].numel() * 4
        + (program.constants[f"{step.name}.bias"].numel() * 4 if ready.spec[step.layer].has_bias else 0)
        for step in program.instructions
        if step.weight_format is not None
    )
    assert program.weight_bytes + scales == size
