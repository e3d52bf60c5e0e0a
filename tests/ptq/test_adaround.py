from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.ptq.adaround import adaround_weight
from haqsearch.ptq.reconstruct import InputStatistics
from haqsearch.quant import quantize_weight
from haqsearch.spec import Format


def statistics_of(x):
    x = x.double()
    mean = x.mean(0, keepdim=True)
    return InputStatistics(mean, (x.T @ x / len(x) - mean.T @ mean)[None])


def correlated(rows, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(rows, size, generator=generator) @ torch.randn(size, size, generator=generator) + 0.3)


def output_error(weight, made, x):
    change = (weight - made.dequantize()).double() @ x.double().T
    if made.bias_correction is not None:
        change = change - made.bias_correction.double()[:, None]
    return change.square().mean(1)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 8), st.integers(0, 999), st.booleans(), st.booleans())
def test_codes_are_neighbours_and_no_channel_is_worse_than_nearest(outputs, size, width, seed, bias, by_tensor):
    x = correlated(200, size, seed)
    weight = torch.randn(outputs, size, generator=torch.Generator().manual_seed(seed + 1))
    format = Format("int", width, "tensor" if by_tensor else "")
    nearest = quantize_weight(weight, format)
    made = adaround_weight(weight, format, statistics_of(x), has_bias=bias, steps=60)
    assert (made.bias_correction is None) is not bias
    assert torch.equal(made.scale, nearest.scale)
    real = (weight / made.scale[:, None]).double().clamp(format.code_min, format.code_max)
    assert bool(((made.codes.double() - real).abs() < 1 + 1e-6).all())
    if bias:
        mean = (weight - nearest.dequantize()).double() @ x.double().mean(0)
        theirs = ((weight - nearest.dequantize()).double() @ x.double().T - mean[:, None]).square().mean(1)
    else:
        theirs = output_error(weight, nearest, x)
    assert bool((output_error(weight, made, x) <= theirs * (1 + 1e-6) + 1e-10).all())


def test_finds_nearly_the_best_of_all_roundings():
    """Against every choice of up or down for eight weights, at the same scale: the median excess stays below 5 %."""
    excess = []
    for seed in range(8):
        x = correlated(400, 8, seed)
        weight = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))
        made = adaround_weight(weight, Format("int", 3), statistics_of(x), has_bias=False)
        down = (weight / made.scale).floor()
        best = min(
            float((((weight - (down + torch.tensor(up)).clamp(-3, 3) * made.scale) @ x.T) ** 2).mean())
            for up in itertools.product((0.0, 1.0), repeat=8)
        )
        excess.append(float(output_error(weight, made, x)) / best - 1)
    assert sorted(excess)[4] < 0.05, excess


def test_gains_much_where_inputs_are_correlated():
    x = correlated(2000, 64, 0)
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    made = adaround_weight(weight, Format("int", 3), statistics_of(x), has_bias=False)
    nearest = output_error(weight, quantize_weight(weight, Format("int", 3)), x)
    assert float(output_error(weight, made, x).sum()) < 0.65 * float(nearest.sum())


def test_grouped_dead_and_zero_are_defined():
    statistics = InputStatistics(
        torch.zeros(2, 3).double(), torch.diag_embed(torch.tensor([[1.0, 0, 2], [0, 0, 0]])).double()
    )
    weight = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    made = adaround_weight(weight, Format("int", 4), statistics, steps=20)
    assert made.codes.shape == weight.shape and not bool(made.codes[1].any())
    assert bool(torch.isfinite(made.scale).all()) and bool(torch.isfinite(made.bias_correction).all())


def test_nan_weights_are_refused_by_name():
    with pytest.raises(DataError, match="layer x"):
        adaround_weight(torch.full((2, 3), float("nan")), Format("int", 4), statistics_of(torch.randn(9, 3)), "layer x")
