"""Codes of least output error: the point of a lattice nearest to a layer's weights.

With e = W - W_q and C the covariance of the layer's inputs, e C e' is to be small for each output channel on its own: the closest
vector problem, in the lattice that C makes of the codes. ``nearest_plane`` finds a good point in one go, ``descend`` goes from it
to one that no other code of a single weight betters.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from haqsearch.kernels import best_backend, get_backend
from haqsearch.quant.grid import Grid

_BLOCK = 64  # weights decided before those behind them hear of it: one product of matrices instead of many of vectors
_ADDED = (1e-7, 1e-5, 1e-3, 1e-1, 1.0)  # shares of the largest variance


def nearest_plane(rows: Tensor, scale: Tensor, covariance: Tensor, grid: Grid) -> Tensor:
    """Codes of ``grid`` (G, N, K), one weight after the other, the later ones making up for what the earlier ones change.

    Babai's nearest plane algorithm [1986, Combinatorica 6], which is what GPTQ does [Frantar et al. 2022, 2210.17323; Chen et al.
    2025, 2507.18553]. With C = V V' and V upper triangular, e C e' <= sum_k (V_kk scale / 2) ** 2 where no code is clamped.
    Inputs of large variance go first, as GPTQ's ``act_order``: nothing is left to make up for what is decided last. Arguments
    as of ``descend``.
    """
    order = covariance.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)  # (G, K)
    size = order.shape[1]
    ordered = covariance.gather(1, order[:, :, None].expand(-1, -1, size)).gather(
        2, order[:, None].expand(-1, size, -1)
    )
    upper = _lower_factor(ordered.flip(1, 2)).flip(1, 2)  # V
    inverse = torch.linalg.solve_triangular(upper, torch.eye(size, dtype=upper.dtype), upper=True)
    share = inverse / inverse.diagonal(dim1=1, dim2=2)[..., None]  # of a weight's change that each later one takes over
    every = order[:, None].expand(rows.shape)
    if grid.step is not None:
        grid = replace(grid, step=grid.step.gather(2, every))
    decide = decide_in_torch if rows.device.type != "cpu" or best_backend() != "native" else _decide_natively
    return torch.empty_like(rows).scatter_(2, every, decide(rows.gather(2, every), scale, share, grid))


def _decide_natively(rows: Tensor, scale: Tensor, share: Tensor, grid: Grid) -> Tensor:
    return get_backend("native").decide(
        rows, scale, share.transpose(1, 2), (grid.low, grid.high), _double(grid.levels), _double(grid.step)
    )


def decide_in_torch(rows: Tensor, scale: Tensor, share: Tensor, grid: Grid) -> Tensor:
    """Codes (G, N, K) of ``rows``, from the first input to the last; ``share`` (G, K, K): in row k of the change of weight k what
    each later one is made less by. Native code has the same, but for the order of sums.
    """
    size = rows.shape[2]
    wanted = rows.transpose(1, 2).contiguous()  # (G, K, N)
    codes, changes = torch.empty_like(wanted), torch.empty_like(wanted)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        for k in range(start, stop):
            codes[:, k] = grid[:, :, k].snap(wanted[:, k] / scale)
            changes[:, k] = wanted[:, k] - codes[:, k] * scale
            wanted[:, k + 1 : stop].baddbmm_(share[:, k, k + 1 : stop, None], changes[:, k, None], alpha=-1)
        wanted[:, stop:].baddbmm_(share[:, start:stop, stop:].transpose(1, 2), changes[:, start:stop], alpha=-1)
    return codes.transpose(1, 2)


def _double(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.double()


def _lower_factor(symmetric: Tensor) -> Tensor:
    """Cholesky factors (G, K, K), with as little added as makes a matrix positive definite that, of rounded sums, is not."""
    largest = symmetric.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    unit = largest.where(largest > 0, 1.0) * torch.eye(symmetric.shape[1], dtype=symmetric.dtype)
    factor, failed = torch.linalg.cholesky_ex(symmetric)
    for share in _ADDED:
        if not bool(failed.any()):
            break
        again, still = torch.linalg.cholesky_ex(symmetric + share * unit)
        factor, failed = torch.where((failed > 0)[:, None, None], again, factor), still.where(failed > 0, failed)
    return factor


def descend(
    rows: Tensor, codes: Tensor, slope: Tensor, scale: Tensor, covariance: Tensor, grid: Grid, sweeps: int
) -> tuple[Tensor, Tensor]:
    """Codes of ``grid``, from ``codes``, after up to ``sweeps`` over all weights at a fixed scale; fewer if nothing moves.

    Cyclic coordinate descent: with the others fixed, the best code of one weight is a rounding [QuantEase, Behdin et al. 2023,
    2309.01885, lemma 1]. Done by native code where that is built; ``in_torch`` is what it has to equal, to the last bit.
    ``rows`` and ``codes`` (G, N, K), ``scale`` (G, N), ``covariance`` (G, K, K), all float64: G groups of N channels. ``slope``
    (G, N, K) is (rows - codes * scale) covariance; that of the new codes comes back with them.
    """
    if rows.device.type != "cpu" or best_backend() != "native":
        return in_torch(rows, codes, slope, scale, covariance, grid, sweeps)
    error = (rows - codes * scale[..., None]).contiguous()
    codes, slope = codes.contiguous().clone(), slope.contiguous().clone()
    bounds, levels, step = (grid.low, grid.high), _double(grid.levels), _double(grid.step)
    get_backend("native").descend(codes, error, slope, rows, scale, covariance, bounds, levels, step, sweeps)
    return codes, slope


def in_torch(
    rows: Tensor, codes: Tensor, slope: Tensor, scale: Tensor, covariance: Tensor, grid: Grid, sweeps: int
) -> tuple[Tensor, Tensor]:
    """``descend`` in torch; all channels move at once."""
    codes, error, slope = codes.clone(), rows - codes * scale[..., None], slope.clone()
    variance = covariance.diagonal(dim1=1, dim2=2)
    for _ in range(sweeps):
        before = codes.clone()
        for k in range(rows.shape[2]):
            wanted = rows[:, :, k] - error[:, :, k] + slope[:, :, k] / variance[:, k, None]
            code = grid[:, :, k].snap(wanted / scale)
            moved = (codes[:, :, k] - code) * scale
            codes[:, :, k] = code
            error[:, :, k] += moved
            slope += moved[..., None] * covariance[:, None, k, :]
        if before.equal(codes):
            break
    return codes, slope
