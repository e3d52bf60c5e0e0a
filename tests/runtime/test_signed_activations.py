"""Activations may have signed formats: the same integers on the kernels, by the oracle and in what is exported."""

from __future__ import annotations

import pytest
import torch
from networks import inputs, small

from haqsearch.graph import run_float
from haqsearch.runtime import run_codes, run_program
from haqsearch.spec import Choice, Format, Policy
from tests.export.test_onnx import check_equal, exported
from tests.runtime.oracle import oracle_codes


@pytest.mark.parametrize("text", ["int8/int8", "int4/int3", "binary/int5"])
@pytest.mark.parametrize("name", ["depthwise", "tie", "max_pool_padded", "tokens"])
def test_programs_with_signed_activations_are_exact(name, text, tmp_path):
    network = small(name)
    policy = Policy.uniform(network.spec, Choice.parse(text))
    program = network.lower(policy)
    x = inputs(name, 16, 3) * 2
    codes = run_codes(program, x)
    assert any(tensor.format == Choice.parse(text).activation for tensor in program.tensors.values())
    assert torch.equal(codes.double(), oracle_codes(program, x))
    check_equal(program, exported(program, tmp_path), x)


def test_a_bit_is_lost_behind_relu_and_nothing_of_values_of_both_signs():
    """uint has a zero point, so it serves both; at equal widths signed codes are at most as good."""
    errors = {}
    for name in ("depthwise", "tokens"):
        network, x = small(name), inputs(name, 64, 5)
        for activation in ("int5", "uint4", "uint5"):
            program = network.lower(
                Policy.uniform(network.spec, Choice(Format.parse("int8"), Format.parse(activation)))
            )
            errors[name, activation] = float((run_program(program, x) - run_float(network.graph, x)).square().mean())
        assert errors[name, "uint5"] < 1.1 * errors[name, "int5"], errors
    assert errors["depthwise", "uint4"] < 2 * errors["depthwise", "int5"], errors
