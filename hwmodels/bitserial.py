"""Bit-serial matrix multiplication: cost proportional to weight bits times activation bits (BISMO).

A grid of ``rows`` x ``columns`` dot-product units multiplies words of ``word_bits`` binary digits. A layer is a product
of pixels x reduction by reduction x outputs, cut into tiles of ``rows`` pixels and ``columns`` outputs, its reduction
padded to whole words; a tile takes one cycle per word, weight bit and activation bit [Umuroglu et al., 1806.08862].

Two ports stream weights and activations into two buffers while the grid computes. Whichever operand the inner loop runs
over has to arrive once before it can be reused, and the schedule takes the better of both nestings:

    pixels outermost   the first pixel tile runs at the pace of the weight stream, the others at the pace of the grid
    outputs outermost  the first output tile runs at the pace of the activation stream, the others at that of the grid

An operand that overflows its buffer is cut into the fewest pieces that fit, and the other one streams again for each.

The nestings, the fill and drain terms and the piece rule were inferred from the latency table published with HAQ
(mit-han-lab/haq, ``qmobilenetv2_imagenet100_batch16_latency_table.npy``), which they reproduce to the cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from haqsearch.spec import Choice
from hwmodels.geometry import Loops, ceil_div
from hwmodels.schema import Bytes, Count, Energy, Profile, ProfiledDevice, Rate, Run, Section


class Compute(Section):
    """The grid: ``rows`` pixels by ``columns`` output channels of ``word_bits`` binary multiply-accumulates per cycle.

    A depthwise convolution shares each word among ``depthwise_channels_per_word`` channels.
    """

    kind: Literal["bit_serial"]
    rows: Count
    columns: Count
    word_bits: Count
    depthwise_channels_per_word: Count


class Memory(Section):
    """Ports to DRAM and the on-chip buffers; results leave with ``output_bits`` each."""

    activation_port_bits_per_cycle: Rate
    weight_port_bits_per_cycle: Rate
    activation_buffer_bytes: Bytes
    weight_buffer_bytes: Bytes
    output_bits: Count = 32


class Energies(Section):
    """Energy of a multiply-accumulate of one weight bit with one activation bit, and of a bit to or from DRAM."""

    core_pj_per_bit_mac: Energy
    dram_pj_per_bit: Energy


class BitSerialProfile(Profile):
    """A bit-serial device."""

    compute: Compute
    memory: Memory
    energy: Energies

    def device(self) -> BitSerial:
        return BitSerial(self)


@dataclass(frozen=True)
class _Product:
    """A product on the grid: its cycles in all, and those of each resource if nothing else held it up."""

    cycles: float = 0
    compute: float = 0
    activations: float = 0
    weights: float = 0

    def plus(self, other: _Product, times: int) -> _Product:
        return _Product(
            self.cycles + times * other.cycles,
            self.compute + times * other.compute,
            self.activations + times * other.activations,
            self.weights + times * other.weights,
        )


class BitSerial(ProfiledDevice[BitSerialProfile]):
    """Prices layers on a bit-serial grid. float32 runs as 32 x 32 binary passes."""

    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        compute, memory, energy = self.profile.compute, self.profile.memory, self.profile.energy
        if loops.kind == "depthwise":
            packed = min(compute.depthwise_channels_per_word, loops.outputs)
            pixels, outputs, repeats = loops.pixels, packed, batch * ceil_div(loops.outputs, packed)
            words = ceil_div(loops.taps * packed, compute.word_bits)
        else:
            # A batch of vectors is one matrix; images are multiplied one after the other.
            merged = loops.kind == "linear"
            pixels, repeats = (loops.pixels * batch, 1) if merged else (loops.pixels, batch * loops.groups)
            outputs, words = loops.outputs, ceil_div(loops.reduction, compute.word_bits)
        one = self._product(pixels, outputs, words, *native)
        whole = _Product().plus(one, repeats)
        resources = {"compute": whole.compute, "weights": whole.weights, "activations": whole.activations}
        streamed = whole.weights * memory.weight_port_bits_per_cycle
        streamed += whole.activations * memory.activation_port_bits_per_cycle
        written = batch * loops.pixels * loops.outputs * loops.groups * memory.output_bits
        bit_macs = batch * loops.macs * native[0] * native[1]
        picojoule = bit_macs * energy.core_pj_per_bit_mac + (streamed + written) * energy.dram_pj_per_bit
        seconds = {name: cycles / self.profile.clock.frequency_hz for name, cycles in resources.items()}
        return Run(whole.cycles, max(resources, key=lambda name: resources[name]), picojoule, seconds)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Of both ports together."""
        memory = self.profile.memory
        bits = memory.activation_port_bits_per_cycle + memory.weight_port_bits_per_cycle
        return bits / 8 * self.profile.clock.frequency_hz

    def _product(self, pixels: int, outputs: int, words: int, w: int, a: int) -> _Product:
        """The product, cut into pieces that fit the buffers, in the better of the two nestings."""
        compute, memory = self.profile.compute, self.profile.memory
        word_bytes = compute.word_bits / 8
        pixel_pieces = _pieces(pixels, compute.rows, pixels * words * a * word_bytes / memory.activation_buffer_bytes)
        output_pieces = _pieces(outputs, compute.columns, outputs * words * w * word_bytes / memory.weight_buffer_bytes)
        nestings = []
        for pixels_outermost in (True, False):
            total = _Product()
            for some_outputs, output_times in output_pieces:
                for some_pixels, pixel_times in pixel_pieces:
                    piece = self._piece(some_pixels, some_outputs, words, w, a, pixels_outermost)
                    total = total.plus(piece, output_times * pixel_times)
            nestings.append(total)
        return min(nestings, key=lambda product: product.cycles)

    def _piece(self, pixels: int, outputs: int, words: int, w: int, a: int, pixels_outermost: bool) -> _Product:
        compute, memory = self.profile.compute, self.profile.memory
        pixel_tiles, output_tiles = ceil_div(pixels, compute.rows), ceil_div(outputs, compute.columns)
        per_pixel = words * a * compute.word_bits / memory.activation_port_bits_per_cycle
        full, last = compute.rows * per_pixel, (pixels - (pixel_tiles - 1) * compute.rows) * per_pixel
        tile = words * w * a  # cycles of one pixel tile by one output tile
        grid = pixel_tiles * output_tiles * tile
        activations = pixels * per_pixel
        weights = outputs * words * w * compute.word_bits / memory.weight_port_bits_per_cycle
        if pixels_outermost:
            sweep = output_tiles * tile
            # While a pixel tile computes the next one arrives; after the last word has arrived, the first output tile
            # still needs its other weight bits and the other output tiles are yet to come.
            drain = (output_tiles - 1) * tile + (w - 1) * a
            between = (pixel_tiles - 2) * max(full, sweep) + max(last, sweep)
            by_activations = (full + between if pixel_tiles > 1 else last) + drain
            by_weights = weights + (pixel_tiles - 1) * sweep + a - 1
        else:
            first = (pixel_tiles - 1) * max(full, tile) + max(last, tile) + w - 1
            by_activations = first + (output_tiles - 1) * pixel_tiles * tile
            by_weights = weights + (pixel_tiles - 1) * tile + w * (a - 1)
        return _Product(max(by_activations, by_weights), grid, activations, weights)


def _pieces(length: int, tile: int, overflow: float) -> list[tuple[int, int]]:
    """``length`` cut at tile borders into at least ``overflow`` equal pieces, as (size, how many)."""
    tiles = ceil_div(length, tile)
    size = tile * ceil_div(tiles, min(max(ceil_div(overflow, 1), 1), tiles))
    whole, rest = divmod(length, size)
    return [(n, times) for n, times in ((size, whole), (rest, 1)) if n and times]
