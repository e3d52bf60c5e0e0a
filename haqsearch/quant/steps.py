"""Weights whose blocks share a scale or an exponent (``vsq4``, ``mx6``, ``mxfp4``, ``int4:group=16`` ...), in integers.

A kernel has one scale for an output channel, so a block's own is held as an integer: real = scale[o] * step[block] * level, where
level * step is an int8 code. The format says which levels and steps there are (``Stepped.steps``); what is stored is a tensor of
that format whose values are the codes (``stored``), and the scales of the channels, as of any integer weights.

Levels and steps are found by least squared error, nearest rounding. First a scale for each block as if it were alone; then, for
a few scales of the channel that let the coarsest block have its own, each block takes the better of the two steps next to it, and
the scale is fitted to the codes. Blocks all of step 1, as ``intB`` has them, compete: the error is never above that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from haqsearch.errors import DataError
from haqsearch.quant.affine import positive_scale
from haqsearch.quant.families import STEPPED
from haqsearch.quant.families.family import Steps, blocks, joined, log2
from haqsearch.quant.grid import Grid, least_error_scale, squared_error
from haqsearch.quant.qtensor import QTensor
from haqsearch.spec import Format
from haqsearch.spec.formats import INT8

_WORD = 60  # steps looked at together, one bit of an int64 each
# Scales of the channel that are tried, in terms of the least with which the coarsest block can have its own.
_STARTS = 2.0 ** torch.arange(0, 1, 0.25, dtype=torch.float64)


def steps_of(format: Format) -> Steps:
    """Levels and steps of ``format``, one with ``has_steps``."""
    return STEPPED[format.kind].steps(format)


def grid_of(format: Format, step: Tensor | None = None) -> Grid:
    """Codes of ``format`` at the steps (any shape) of the weights."""
    levels = steps_of(format).levels
    low, high = int(levels[0]), int(levels[-1])
    return Grid(low, high, levels.double() if len(levels) < high - low + 1 else None, step)


def quantize_steps(rows: Tensor, format: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, steps (float64, (rows, length)) and scales (float32, (rows,)) of ``rows`` (rows, length), float64, finite."""
    shape, grid = steps_of(format), grid_of(format)
    scale = least_error_scale(rows, grid)
    step = torch.ones_like(rows)
    codes = grid.snap(rows / scale.double()[:, None])
    if len(shape.steps) == 1:
        return codes, step, scale
    cut = blocks(rows, shape.block)
    alone = least_error_scale(cut.flatten(0, 1), grid).double().reshape(cut.shape[:2])
    alone[cut.abs().amax(2) == 0] = 0.0
    least = squared_error(rows, codes, scale)
    for start in _STARTS:
        found = positive_scale(alone.amax(1) * start / int(shape.steps[-1]))
        tried = joined(_choose(cut, found.double(), alone, shape, grid), rows.shape[1])
        fitted = Grid(grid.low, grid.high, grid.levels, tried)
        product = fitted.snap(rows / found.double()[:, None])
        power = product.square().sum(1)
        found = positive_scale((product * rows).sum(1) / power.clamp(min=1.0))
        product = fitted.snap(rows / found.double()[:, None])
        error = squared_error(rows, product, found)
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, found, scale)
        codes, step = torch.where(better[:, None], product, codes), torch.where(better[:, None], tried, step)
    return codes, step, scale


def stored(codes: Tensor, format: Format) -> QTensor:
    """What is stored of weights with ``codes`` (out, ...) in ``format``: a tensor whose values are the codes, exactly.

    Raises DataError if they are no codes of the format's: no step of some block divides them into levels.
    """
    rows = codes.reshape(len(codes), -1).long()
    step = _steps_in(rows, steps_of(format), format)
    parts = STEPPED[format.kind].held(rows // step, step, format)
    return QTensor(format, parts.pop("codes").reshape(codes.shape), parts)


def _choose(cut: Tensor, scale: Tensor, alone: Tensor, shape: Steps, grid: Grid) -> Tensor:
    """Steps (rows, blocks, block) of least error among the two next to what each block wants (``alone``, (rows, blocks))."""
    wanted = alone / scale[:, None]
    lower = torch.searchsorted(shape.steps.double(), wanted, right=True).sub_(1).clamp_(min=0)
    step, least = torch.ones_like(cut), torch.full_like(alone, torch.inf)
    units = cut / scale[:, None, None]
    for index in (lower, (lower + 1).clamp_(max=len(shape.steps) - 1)):
        tried = shape.steps[index].double()[..., None].expand_as(cut)
        change = _change(units, tried, grid)
        if shape.pair:
            halved = shape.steps[(index - 1).clamp(min=0)].double()[..., None].expand_as(cut)
            finer = _change(units, halved, grid)
            better = _by_pair(finer, shape.pair) < _by_pair(change, shape.pair)
            tried, change = torch.where(better, halved, tried), torch.where(better, finer, change)
        error = change.sum(2)
        better = error < least
        least, step = torch.where(better, error, least), torch.where(better[..., None], tried, step)
    return step


def _change(units: Tensor, step: Tensor, grid: Grid) -> Tensor:
    return (Grid(grid.low, grid.high, grid.levels, step).snap(units) - units).square_()


def _by_pair(x: Tensor, pair: int) -> Tensor:
    """Sum over each pair, at both its elements."""
    return x.unflatten(2, (-1, pair)).sum(3).repeat_interleave(pair, 2)


def _steps_in(rows: Tensor, shape: Steps, format: Format) -> Tensor:
    """The least steps (int64, (rows, length)) that divide ``rows`` (rows, length) into levels."""
    inside = rows.clamp(-INT8.code_max, INT8.code_max)
    cut = blocks(inside, shape.block)
    step = torch.zeros(cut.shape[:2], dtype=torch.int64)  # 0: none found yet
    for start in range(0, len(shape.steps), _WORD):
        sizes = shape.steps[start : start + _WORD]
        fits = _fitting(sizes, shape.levels)[cut + INT8.code_max]  # bit i of a weight: sizes[i] divides it into a level
        if shape.pair:
            fits = _by_and(fits.unflatten(2, (-1, shape.pair)))
            halved = fits | fits << 1
            chosen = _lowest(_by_and(halved))[..., None].expand_as(fits)
            chosen = torch.where(
                (fits >> chosen.clamp(min=0)) & 1 == 1, chosen, chosen - 1
            )  # -1 if there is none stays
            step = torch.where(chosen >= 0, sizes[chosen.clamp(min=0)], 0)
            step = step.repeat_interleave(shape.pair, 2)
            break
        found = _lowest(_by_and(fits))
        step = torch.where((step == 0) & (found >= 0), sizes[found.clamp(min=0)], step)
    if not shape.pair:
        step = step[..., None].expand_as(cut)
    if not bool((step > 0).all()) or not torch.equal(inside, rows):
        raise DataError(f"not codes of {format}: no step divides every block of a channel into its levels")
    return joined(step, rows.shape[1])


def _fitting(sizes: Tensor, levels: Tensor) -> Tensor:
    """Of every code, from -127 on, the ``sizes`` that divide it into one of ``levels``, as bits (int64)."""
    codes = torch.arange(-INT8.code_max, INT8.code_max + 1)[:, None]
    fits = (codes % sizes == 0) & torch.isin(torch.div(codes, sizes, rounding_mode="floor"), levels)
    return (fits.long() << torch.arange(len(sizes))).sum(1)


def _by_and(bits: Tensor) -> Tensor:
    """Bitwise and over the last dimension."""
    while (size := bits.shape[-1]) > 1:
        half = size // 2
        rest = bits[..., 2 * half :]
        bits = torch.cat([bits[..., :half] & bits[..., half : 2 * half], rest], -1)
    return bits[..., 0]


def _lowest(bits: Tensor) -> Tensor:
    """Index of the lowest bit that is set; -1 if none is."""
    lowest = bits & -bits
    return torch.where(bits == 0, -1, log2(lowest))
