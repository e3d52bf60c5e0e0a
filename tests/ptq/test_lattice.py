"""Codes near in the sense of the layer's output; native coordinate descent equals the one in torch, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.ptq import lattice
from haqsearch.ptq.lattice import decide_in_torch, descend, in_torch, nearest_plane
from haqsearch.quant import quantize_weight
from haqsearch.quant.grid import Grid
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
    slope = (rows - codes * scale[..., None]) @ covariance
    before = codes.clone(), slope.clone()
    found, wanted = (way(rows, codes, slope, scale, covariance, grid, sweeps) for way in (descend, in_torch))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert torch.equal(codes, before[0]) and torch.equal(slope, before[1]), "what it begins with is the caller's"
    change = rows - found[0] * scale[..., None]
    torch.testing.assert_close(found[1], change @ covariance)
    first = rows - codes * scale[..., None]
    least, most = (((e @ covariance) * e).sum(2) for e in (change, first))
    assert bool((least <= most * (1 + 1e-9) + 1e-12).all()), "descent never ascends"


def test_the_number_of_threads_does_not_matter():
    rows, codes, scale, covariance, grid = problem((2, 30, 36), "int3", 5, False)
    slope = (rows - codes * scale[..., None]) @ covariance
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(descend(rows, codes, slope, scale, covariance, grid, 4)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_arrays_that_do_not_belong_together_are_refused():
    from haqsearch.kernels import native

    rows, codes, scale, covariance, _ = problem((1, 2, 3), "int3", 0, False)
    with pytest.raises(ValueError, match="belong together"):
        native.descend(codes, codes.clone(), codes.clone(), rows, scale, covariance[:, :2], (-3, 3), None, None, 1)


def decided(rows, scale, share, grid):
    """``decide``, a product and a difference at a time."""
    wanted, codes = rows.clone(), torch.empty_like(rows)
    for k in range(rows.shape[2]):
        codes[:, :, k] = grid[:, :, k].snap(wanted[:, :, k] / scale)
        change = wanted[:, :, k] - codes[:, :, k] * scale
        for j in range(k + 1, rows.shape[2]):
            wanted[:, :, j] -= share[:, k, j, None] * change
    return codes


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 24)),
    st.sampled_from(FORMATS),
    st.integers(0, 10_000),
    st.integers(1, 4),
)
def test_native_decisions_are_those_of_one_product_at_a_time(shape, format, seed, threads):
    from haqsearch.kernels import native

    rows, _, scale, _, grid = problem(shape, format, seed, False)
    share = torch.randn(
        shape[0], shape[2], shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    levels, step = (None if t is None else t.double() for t in (grid.levels, grid.step))
    before, kept = torch.get_num_threads(), rows.clone()
    torch.set_num_threads(threads)
    try:
        found = native.decide(rows, scale, share.transpose(1, 2), (grid.low, grid.high), levels, step)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, decided(rows, scale, share, grid)) and torch.equal(rows, kept)
    with pytest.raises(ValueError, match="belong together"):
        native.decide(rows, scale, share[:, :, :-1], (grid.low, grid.high), levels, step)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 10_000), st.booleans(), st.booleans())
def test_the_nearest_plane_keeps_babais_bound(shape, seed, twins, built):
    """e C e' <= sum_k (V_kk scale / 2) ** 2 with C = V V', V upper triangular in the order of decision, if no code is clamped."""
    rows, _, scale, covariance, _ = problem(shape, "int8", seed, twins)
    with pytest.MonkeyPatch.context() as patch:
        if not built:
            patch.setattr(lattice, "_decide_natively", decide_in_torch)
        plane = nearest_plane(rows, scale, covariance, Grid(-(10**6), 10**6))
    change = rows - plane * scale[..., None]
    error = ((change @ covariance) * change).sum(2)
    for group, matrix in enumerate(covariance):
        order = matrix.diagonal().argsort(descending=True, stable=True)
        upper = torch.linalg.cholesky(matrix[order][:, order].flip(0, 1)).flip(0, 1)
        bound = (upper.diagonal() ** 2).sum() * scale[group] ** 2 / 4
        assert bool((error[group] <= bound * (1 + 1e-6)).all())


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(FORMATS), st.integers(0, 10_000))
def test_inputs_that_have_nothing_in_common_are_rounded_to_nearest(shape, format, seed):
    rows, _, scale, covariance, grid = problem(shape, format, seed, False)
    alone = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
    assert torch.equal(nearest_plane(rows, scale, alone, grid), grid.snap(rows / scale[..., None]))


def test_what_is_not_positive_definite_has_defined_codes():
    """Sums of float32 may leave a covariance a little below it; and inputs may all be zero."""
    rows, _, scale, _, grid = problem((3, 4, 6), "int3", 1, False)
    column = torch.arange(1.0, 7.0, dtype=torch.float64)
    singular = torch.stack(
        [torch.outer(column, column) - 1e-6 * torch.eye(6), torch.zeros(6, 6), torch.eye(6)]
    ).double()
    codes = nearest_plane(rows, scale, singular, grid)
    assert bool(codes.isfinite().all()) and bool((codes.abs() <= 3).all())
    assert torch.equal(codes[2], grid.snap(rows[2] / scale[2][:, None]))
