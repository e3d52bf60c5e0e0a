"""Spatially fused multipliers: narrow operands share a multiplier side by side (BitFusion).

A systolic array of ``rows`` x ``columns`` fusion units. A unit holds ``base_bits / w * base_bits / a`` multipliers of
w x a bits, all along the reduction; wider operands take ``w / base_bits * a / base_bits`` passes. Rows are input
channels, columns output channels, kernel taps follow one after the other - except in the first layer, whose patches are
unrolled (im2col) because three channels would leave the rows empty [Sharma et al. 2018, 1712.01507], and in a depthwise
layer, whose taps lie on the rows and whose channels on the columns.

    compute  batch * pixels * ceil(outputs / columns) * taps * ceil(channels / (rows * multipliers))
    memory   weights + activations + partial sums read and written, in bits, each as often as the tiling moves it
    cycles   max(compute, memory without first and last tile) + first tile + last tile

``hwmodels.tiling`` searches the tilings and loop orders that fit the buffers, for the fewest cycles and then the least
energy, as the simulator hsharma35/bitfusion does (formulas: ``accelerator.py``, ``optimizer.py``, ``stats.py``). The
simulator has no depthwise operator; that mapping is ours, and HAQ's latencies of MobileNetV1 are its check.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from haqsearch.spec import Choice
from hwmodels.geometry import Loops, ceil_div
from hwmodels.schema import Bytes, Count, Energy, Profile, ProfiledDevice, Rate, Run, Section
from hwmodels.tiling import Floats, Indices, Moved, Nest, Tilings


class Compute(Section):
    """The array of fusion units and the widest operands, ``base_bits``, that one unit multiplies in one cycle."""

    kind: Literal["spatial"]
    rows: Count
    columns: Count
    base_bits: Count
    partial_sum_bits: Count = 32


class Dram(Section):
    """The port to external memory."""

    bandwidth_bits_per_cycle: Rate
    energy_pj_per_bit: Energy


class Buffer(Section):
    """An on-chip SRAM, double-buffered: half of ``size_bytes`` holds a working set."""

    size_bytes: Bytes
    read_pj_per_bit: Energy
    write_pj_per_bit: Energy


class Memory(Section):
    """External memory and the three buffers of the array."""

    dram: Dram
    weights: Buffer
    activations: Buffer
    outputs: Buffer


class Energies(Section):
    """Energy of one busy cycle of the whole array."""

    core_pj_per_cycle: Energy


class SpatialProfile(Profile):
    """A device of spatially fused multipliers."""

    compute: Compute
    memory: Memory
    energy: Energies

    def device(self) -> Spatial:
        return Spatial(self)


class Spatial(ProfiledDevice[SpatialProfile]):
    """Prices layers on an array of fusion units. float32 takes (32 / base_bits) ** 2 passes."""

    def __init__(self, profile: SpatialProfile) -> None:
        super().__init__(profile)
        # A table asks for one layer after the other, a search for all of them in turn: results are kept, arrays are not.
        self._layer = lru_cache(maxsize=4)(lambda nest: _Layer(profile, nest))
        self._tile = lru_cache(maxsize=65536)(self._best)

    @property
    def bandwidth_bytes_per_s(self) -> float:
        profile = self.profile
        return profile.memory.dram.bandwidth_bits_per_cycle * profile.clock.frequency_hz / 8

    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        depthwise, linear = loops.kind == "depthwise", loops.kind == "linear"
        # Rows of a linear layer share its weights just as the samples of a batch do.
        nest = Nest(
            batch * loops.rows if linear else batch,
            1 if linear else loops.rows,
            loops.columns,
            loops.channels,
            loops.outputs,
            loops.kernel,
            loops.stride,
            unrolled=loops.first and loops.kind == "convolution",
            depthwise=depthwise,
        )
        one: Run = self._tile(nest, choice.weight.width, choice.activation.width, native)
        seconds = {name: value * loops.groups for name, value in one.seconds.items()}
        return Run(one.cycles * loops.groups, one.bound, one.energy_pj * loops.groups, seconds)

    def _best(self, nest: Nest, w: int, a: int, native: tuple[int, int]) -> Run:
        return self._layer(nest).best(w, a, native)


class _Layer:
    """Every tiling of one layer on the array of ``profile``; traffic is computed once per operand and width."""

    def __init__(self, profile: SpatialProfile, nest: Nest) -> None:
        self.profile, memory = profile, profile.memory
        self.half = {
            name: 4.0 * buffer.size_bytes  # double-buffered: half of its bits
            for name, buffer in (
                ("weights", memory.weights),
                ("activations", memory.activations),
                ("outputs", memory.outputs),
            )
        }
        array = profile.compute
        self.tilings = Tilings(nest, array.columns, self.half["outputs"] / array.partial_sum_bits)
        self.sums = self._move("outputs", self.tilings.pixels * self.tilings.wide * array.partial_sum_bits)
        self._weights = lru_cache(maxsize=None)(self._move_weights)
        self._activations = lru_cache(maxsize=None)(self._move_activations)

    def _move_weights(self, bits: int, lanes: int) -> Moved:
        return self._move("weights", self.tilings.weights(lanes) * bits)

    def _move_activations(self, bits: int) -> Moved:
        return self._move("activations", self.tilings.activations * bits)

    def _move(self, operand: str, tile_bits: Floats) -> Moved:
        return self.tilings.move(operand, tile_bits, self.half[operand])

    def best(self, w: int, a: int, native: tuple[int, int]) -> Run:
        """The layer stored at ``w`` and ``a`` bits and executed at ``native``, in its best tiling and order."""
        array, port = self.profile.compute, self.profile.memory.dram.bandwidth_bits_per_cycle
        lanes = array.rows * prod(max(array.base_bits // bits, 1) for bits in native)
        passes = prod(ceil_div(bits, array.base_bits) for bits in native)
        moves = _Moves(self._weights(w, lanes), self._activations(a), self.sums)
        compute = self.tilings.tiles * self.tilings.steps(lanes) * passes
        # What no order can beat; tilings that cannot beat the best order of the most promising one are left out.
        floor = np.maximum(moves.least / port, compute)
        promising = np.array([floor.argmin()])
        enough = moves.of(promising).cycles(compute[promising], port).min()
        tilings = np.nonzero(floor <= enough * (1 + 1e-12))[0]
        moves, compute = moves.of(tilings), compute[tilings]
        cycles = moves.cycles(compute, port)
        order, tiling = np.nonzero(cycles == cycles.min())
        chosen = _Moves(*(Moved(m.moved[order, tiling], m.held[order, tiling]) for m in moves))
        read = self.tilings.read(w, a, array.partial_sum_bits, lanes, tilings[tiling])
        energy = self._energy(chosen, compute[tiling], read)
        best = energy.argmin()
        traffic = {name: float(bits[best]) for name, bits in chosen.traffic.items()}
        hidden = compute[tiling[best]] >= chosen.stream(port)[best]
        frequency = self.profile.clock.frequency_hz
        seconds = {name: bits / port / frequency for name, bits in traffic.items()}
        seconds["compute"] = float(compute[tiling[best]]) / frequency
        bound = "compute" if hidden else max(traffic, key=lambda name: traffic[name])
        return Run(float(cycles.min()), bound, float(energy[best]), seconds)

    def _energy(self, moves: _Moves, compute: Floats, read: dict[str, Floats]) -> Floats:
        """Picojoule of each of ``moves``."""
        memory, (weights, activations, sums) = self.profile.memory, (m.moved for m in moves)
        picojoule: Floats = (
            compute * self.profile.energy.core_pj_per_cycle
            + (weights + activations + 2 * sums) * memory.dram.energy_pj_per_bit
            + weights * memory.weights.write_pj_per_bit
            + activations * memory.activations.write_pj_per_bit
            + read["weights"] * memory.weights.read_pj_per_bit
            + read["activations"] * memory.activations.read_pj_per_bit
            # Partial sums pass through their buffer twice: to and from DRAM, to and from the array.
            + (sums + read["outputs"]) * (memory.outputs.read_pj_per_bit + memory.outputs.write_pj_per_bit)
        )
        return picojoule


class _Moves(NamedTuple):
    """Traffic of the three operands, over the same orders and tilings; of outputs, one way of two."""

    weights: Moved
    activations: Moved
    outputs: Moved

    @property
    def least(self) -> Floats:
        """Bits of each tiling if every operand had the order that suits it."""
        return self.weights.least + self.activations.least + 2 * self.outputs.least

    @property
    def traffic(self) -> dict[str, Floats]:
        """Bits by operand, partial sums in both directions."""
        return {
            "weights": self.weights.moved,
            "activations": self.activations.moved,
            "outputs": 2 * self.outputs.moved,
        }

    def of(self, tilings: Indices) -> _Moves:
        """The part of these tilings."""
        return _Moves(*(m.of(tilings) for m in self))

    def stream(self, port: float) -> Floats:
        """Cycles of the transfers that overlap with compute: all but the first tiles in and the last one out."""
        moved = self.weights.moved + self.activations.moved + 2 * self.outputs.moved
        held = self.weights.held + self.activations.held + 2 * self.outputs.held
        return np.ceil((moved - held) / port)

    def cycles(self, compute: Floats, port: float) -> Floats:
        """Cycles of a layer that takes ``compute`` cycles on the array and has a ``port`` of so many bits a cycle."""
        first = self.weights.held + self.activations.held + self.outputs.held
        ends: Floats = np.ceil(first / port) + np.ceil(self.outputs.held / port)
        return np.maximum(self.stream(port), compute) + ends
