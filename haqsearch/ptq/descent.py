"""Cyclic coordinate descent over the codes of a layer's weights.

With e = W - W_q and C the covariance of the layer's inputs, e C e' is minimised for each output channel, one code at a time with
the others fixed, where the best code is a rounding [QuantEase, Behdin et al. 2023, 2309.01885, lemma 1]. It is nearly all of the
time of ``reconstruct``: native code does it where that is built, ``in_torch`` is what it has to equal, to the last bit.
"""

from __future__ import annotations

from torch import Tensor

from haqsearch.kernels import best_backend, get_backend
from haqsearch.quant.grid import Grid


def descend(rows: Tensor, codes: Tensor, scale: Tensor, covariance: Tensor, grid: Grid, sweeps: int) -> Tensor:
    """Codes of ``grid``, from ``codes``, after up to ``sweeps`` over all weights at a fixed scale; fewer if nothing moves.

    ``rows`` and ``codes`` (G, N, K), ``scale`` (G, N), ``covariance`` (G, K, K), all float64: G groups of N channels.
    """
    error = rows - codes * scale[..., None]
    slope = error @ covariance
    if rows.device.type != "cpu" or best_backend() != "native":
        return in_torch(rows, codes, error, slope, scale, covariance, grid, sweeps)
    codes = codes.contiguous().clone()
    levels = None if grid.levels is None else grid.levels.double()
    step = None if grid.step is None else grid.step.double()
    get_backend("native").descend(
        codes, error, slope.contiguous(), rows, scale, covariance, (grid.low, grid.high), levels, step, sweeps
    )
    return codes


def in_torch(
    rows: Tensor,
    codes: Tensor,
    error: Tensor,
    slope: Tensor,
    scale: Tensor,
    covariance: Tensor,
    grid: Grid,
    sweeps: int,
) -> Tensor:
    """The same from an ``error`` = rows - codes * scale and ``slope`` = error covariance; all channels move at once."""
    codes, error, slope = codes.clone(), error.clone(), slope.clone()
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
    return codes
