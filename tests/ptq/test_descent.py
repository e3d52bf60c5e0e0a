"""Native coordinate descent equals the one in torch, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.ptq.descent import descend, in_torch
from haqsearch.quant import quantize_weight
from haqsearch.spec import Format

pytest.importorskip("haqsearch.kernels.native", reason="the native kernels are not built")

FORMATS = ["int2", "int3", "int5", "int8", "ternary", "binary", "vsq4", "mx4", "mxfp4", "int3:group=3", "int4:tensor"]
shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))


def problem(shape, format, seed, twins):
    """A layer's weights, first codes and input covariance; with ``twins`` many inputs are equal: ties, and C is singular."""
    groups, channels, size = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * channels, size, generator=generator)
    x = torch.randn(groups, 2 * size, size, generator=generator, dtype=torch.float64)
    if twins:
        weight, x = weight.mul(4).round() / 4, x.round()
        x[:, :, size // 2 :] = x[:, :, :1]
    covariance = x.transpose(1, 2) @ x / x.shape[1]
    covariance.diagonal(dim1=1, dim2=2).add_(1e-3)
    made = quantize_weight(weight, Format.parse(format))
    rows, grid = weight.double().reshape(shape), made.grid.reshaped(*shape)
    scale = made.scale.double().expand(groups * channels).reshape(groups, channels)
    return rows, grid.snap(rows / scale[..., None]), scale, covariance, grid


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from(FORMATS), st.integers(0, 10_000), st.booleans(), st.integers(0, 6))
def test_equals_the_one_in_torch(shape, format, seed, twins, sweeps):
    rows, codes, scale, covariance, grid = problem(shape, format, seed, twins)
    before = codes.clone()
    found = descend(rows, codes, scale, covariance, grid, sweeps)
    error = rows - codes * scale[..., None]
    assert torch.equal(found, in_torch(rows, codes, error, error @ covariance, scale, covariance, grid, sweeps))
    assert torch.equal(codes, before), "the first codes are the caller's"


def test_the_number_of_threads_does_not_matter():
    given_ = problem((2, 30, 36), "int3", 5, False)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(descend(*given_, 4))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_arrays_that_do_not_belong_together_are_refused():
    from haqsearch.kernels import native

    rows, codes, scale, covariance, _ = problem((1, 2, 3), "int3", 0, False)
    with pytest.raises(ValueError, match="belong together"):
        native.descend(codes, codes.clone(), codes.clone(), rows, scale, covariance[:, :2], (-3, 3), None, None, 1)
