"""The search over tilings and loop orders of a double-buffered accelerator with one buffer per operand.

A layer is five loops around a tile: batch, output rows, output columns, input channels, output channels (kernel taps are
never cut). A tile of every operand has to fit half its buffer; the other half is filled meanwhile. Tile sizes are powers
of two - of output channels, powers of two of the array's columns - and the extent itself; rows and columns are cut alike.

An operand stays in its buffer over a loop that does not index it. Over a loop that does, all its tiles stay if they fit
together; once they do not, every loop further out fetches it anew. So what is moved depends on the order of the loops:

    moved    per operand: the tile, times the loops outside what stays, times the loops inside that index it
    cycles   max(compute, (moved - first - last) / port) + first / port + last / port

``first`` is what has to arrive before the array can start, ``last`` what leaves after it has stopped. The search takes
the fewest cycles, and of those the least energy: traffic that compute hides is free to it. The mechanism and the
formulas are those of the simulator hsharma35/bitfusion (``optimizer.py``); this is a search of its own, over whole arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

BATCH, ROWS, COLUMNS, INPUTS, OUTPUTS = range(5)
_INDEXED_BY = {  # operand -> the loops that index it
    "weights": {INPUTS, OUTPUTS},
    "activations": {BATCH, ROWS, COLUMNS, INPUTS},
    "outputs": {BATCH, ROWS, COLUMNS, OUTPUTS},
}


@dataclass(frozen=True)
class Nest:
    """Loops of a layer (of one of its groups). ``unrolled``: patches are written out before the array sees them
    (im2col). ``depthwise``: an output channel reads only the input channel of its number, so ``inputs`` is 1."""

    batch: int
    rows: int
    columns: int
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    unrolled: bool = False
    depthwise: bool = False


@dataclass(frozen=True)
class Moved:
    """Traffic of one operand, shape (orders, tilings): bits ``moved`` between DRAM and buffer (``inf`` where a tile does
    not fit), and the bits that stay in the buffer at once, ``held``."""

    moved: Floats
    held: Floats

    @cached_property
    def least(self) -> Floats:
        """Bits moved in each tiling's best order."""
        return np.asarray(self.moved.min(axis=0))

    def of(self, tilings: Indices) -> Moved:
        """These tilings' part."""
        return Moved(self.moved[:, tilings], self.held[:, tilings])


class Tilings:
    """Tilings of ``nest`` for an array of ``columns`` columns whose output buffer holds ``outputs_held`` elements, and
    every order of its loops that matters. The first tiling is the smallest; it is taken even if nothing fits."""

    def __init__(self, nest: Nest, columns: int, outputs_held: float) -> None:
        self.nest, self.array_columns = nest, columns
        step = 1 if nest.unrolled else columns
        cuts = _sizes(max(nest.rows, nest.columns))
        axes = np.meshgrid(
            _sizes(nest.batch), cuts, _sizes(nest.inputs), _sizes(nest.outputs, step), indexing="ij", sparse=False
        )
        batch, cut, inputs, outputs = (axis.ravel() for axis in axes)
        extents = (nest.batch, nest.rows, nest.columns, nest.inputs, nest.outputs)
        self.sizes = np.stack([batch, np.minimum(cut, nest.rows), np.minimum(cut, nest.columns), inputs, outputs])
        tile = self.pixels * self.wide
        fits = tile <= max(outputs_held, tile[0])
        del self.pixels, self.wide  # of tilings that drop out now
        self.sizes = self.sizes[:, fits]
        self.counts = np.ceil(np.array(extents, dtype=float)[:, None] / self.sizes)
        self.tiles: Floats = self.counts.prod(axis=0)
        self.orders = _orders([n > 1 for n in extents], alike=nest.rows == nest.columns)

    @property
    def taps(self) -> int:
        return self.nest.kernel[0] * self.nest.kernel[1]

    @cached_property
    def pixels(self) -> Floats:
        """Output positions of a tile, its part of the batch included."""
        product: Floats = self.sizes[BATCH] * self.sizes[ROWS] * self.sizes[COLUMNS]
        return product

    @cached_property
    def wide(self) -> Floats:
        """Output channels of a tile, rounded up to whole columns of the array."""
        return np.ceil(self.sizes[OUTPUTS] / self.array_columns) * self.array_columns

    @cached_property
    def activations(self) -> Floats:
        """Input elements of a tile, the halo of its windows included."""
        (kh, kw), (sh, sw) = self.nest.kernel, self.nest.stride
        channels = self.sizes[OUTPUTS] if self.nest.depthwise else self.sizes[INPUTS]
        if self.nest.unrolled:
            return self.pixels * self.taps * channels
        window: Floats = (kh + (self.sizes[ROWS] - 1) * sh) * (kw + (self.sizes[COLUMNS] - 1) * sw)
        return window * channels * self.sizes[BATCH]

    def weights(self, lanes: int) -> Floats:
        """Weights of a tile, the reduction padded to whole rows of ``lanes`` multipliers."""
        if self.nest.depthwise:
            return self.taps * self.sizes[OUTPUTS]
        return np.ceil(self.taps * self.sizes[INPUTS] / lanes) * lanes * self.sizes[OUTPUTS]

    def steps(self, lanes: int) -> Floats:
        """Cycles of a tile if operands are always there: one per pixel, set of columns and row of multipliers."""
        together = self.nest.unrolled or self.nest.depthwise  # taps side by side on the rows, or one after the other
        reduction = self.taps * self.sizes[INPUTS] if together else self.sizes[INPUTS]
        rows = np.ceil(reduction / lanes) * (1 if together else self.taps)
        return self.pixels * self.wide / self.array_columns * rows

    def read(self, w: int, a: int, sum_bits: int, lanes: int, tilings: Indices) -> dict[str, Floats]:
        """Bits the array reads of every operand's buffer in each of ``tilings`` (of outputs, as many as it writes).

        The operand that stays in the array is the one that makes for the fewest bits, counted over whole rows and
        columns; the others are read for every multiplication, as units do not pass operands on.
        """
        inputs, outputs, pixels, wide = (
            x[tilings] for x in (self.sizes[INPUTS], self.sizes[OUTPUTS], self.pixels, self.wide)
        )
        reduction = self.taps * inputs
        together = self.nest.unrolled or self.nest.depthwise
        padded = np.ceil((reduction if together else inputs) / lanes) * lanes * (1 if together else self.taps)
        by_inputs = padded * pixels * (a + wide * (w + sum_bits))
        by_outputs = wide * pixels * (sum_bits + padded * (a + w))
        by_weights = padded * wide * (w + pixels * (a + sum_bits))
        inputs_stay = by_inputs <= np.minimum(by_outputs, by_weights)
        outputs_stay = ~inputs_stay & (by_outputs <= by_weights)
        weights_stay = ~inputs_stay & ~outputs_stay
        macs = self.tiles[tilings] * reduction * outputs * pixels
        return {
            "weights": np.where(weights_stay, macs / pixels, macs) * w,
            "activations": np.where(inputs_stay, macs / outputs, macs) * a,
            "outputs": np.where(outputs_stay, macs / reduction, macs) * sum_bits,
        }

    def move(self, operand: str, tile_bits: Floats, half_buffer_bits: float) -> Moved:
        """Traffic of ``operand`` with tiles of ``tile_bits``, for every order and tiling.

        A buffer too small for the smallest tile is taken to hold just that.
        """
        half_buffer_bits = max(half_buffer_bits, float(tile_bits[0]))
        moved = np.repeat(tile_bits[None], len(self.orders), axis=0)
        held, stays = moved.copy(), np.ones(moved.shape, dtype=bool)
        for place in reversed(range(self.orders.shape[1])):  # innermost first
            loop = self.orders[:, place]
            again = self._indexed(operand)[loop][:, None] | ~stays
            np.multiply(moved, self.counts[loop], out=moved, where=again)
            stays &= moved <= half_buffer_bits
            np.copyto(held, moved, where=stays)
        moved[:, tile_bits > half_buffer_bits] = np.inf
        return Moved(moved, held)

    def _indexed(self, operand: str) -> npt.NDArray[np.bool_]:
        """Whether each loop indexes ``operand``."""
        indexed = _INDEXED_BY[operand]
        if operand == "activations" and self.nest.depthwise:
            indexed = indexed - {INPUTS} | {OUTPUTS}
        return np.array([loop in indexed for loop in range(5)])


def _sizes(extent: int, step: int = 1) -> Floats:
    """``step`` times every power of two below ``extent``, and ``extent``."""
    powers = step * 2.0 ** np.arange(max(extent, 1).bit_length() + 1)
    return np.append(powers[powers < extent], extent)


def _orders(runs: list[bool], alike: bool) -> Indices:
    """Orders of the loops that run more than once, outermost first, shape (orders, loops).

    Rows and columns that are cut ``alike`` can swap places without changing anything, so one of the two orders is kept.
    """
    loops = [loop for loop, more in enumerate(runs) if more]
    both = alike and runs[ROWS]
    kept = [o for o in permutations(loops) if not both or o.index(ROWS) < o.index(COLUMNS)]
    return np.array(kept, dtype=np.intp).reshape(len(kept), len(loops))
