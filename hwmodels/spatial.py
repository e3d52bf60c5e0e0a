"""Spatially fused multipliers: narrow operands share a multiplier side by side (BitFusion).

A systolic array of ``rows`` x ``columns`` fusion units. A unit holds ``base_bits / w * base_bits / a`` multipliers of
w x a bits, all along the reduction; wider operands take ``w / base_bits * a / base_bits`` passes. Rows are input
channels, columns output channels, kernel taps follow one after the other - except in the first layer, whose patches are
unrolled (im2col) because three channels would leave the rows empty [Sharma et al. 2018, 1712.01507].

    compute  batch * pixels * ceil(outputs / columns) * taps * ceil(channels / (rows * multipliers))
    memory   weights + activations + partial sums read and written, in bits, over the bandwidth of the DRAM port
    cycles   max(compute, memory): transfers are double-buffered

Each tensor moves once; if neither weights nor activations fit half their buffer, the cheaper of the two to repeat moves
once for each piece of the other. A searched tiling often moves more (it trades traffic for hidden cycles), so the DRAM
energy here is near its lower bound. The formulas are those of the simulator hsharma35/bitfusion (``accelerator.py``,
``optimizer.py``, ``stats.py``), in closed form.
"""

from __future__ import annotations

from math import prod
from typing import Literal

from haqsearch.spec import Choice
from hwmodels.geometry import Loops, ceil_div
from hwmodels.schema import Bytes, Count, Energy, Profile, ProfiledDevice, Rate, Run, Section


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

    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        memory = self.profile.memory
        compute = batch * self._compute_cycles(loops, native)
        weights, activations, sums = self._traffic_bits(loops, choice, native, batch)
        weight_pieces = max(1, ceil_div(weights, memory.weights.size_bytes * 8 / 2))
        activation_pieces = max(1, ceil_div(activations, memory.activations.size_bytes * 8 / 2))
        # An operand is fetched again for each piece of the other, unless it stays in its own buffer.
        if weight_pieces > 1 and activation_pieces > 1:
            if weights * (activation_pieces - 1) < activations * (weight_pieces - 1):
                weights *= activation_pieces
            else:
                activations *= weight_pieces
        transfers = {"weights": weights, "activations": activations, "outputs": sums}
        moved = sum(transfers.values())
        stream = moved / memory.dram.bandwidth_bits_per_cycle
        bound = "compute" if compute >= stream else max(transfers, key=lambda name: transfers[name])
        picojoule = (
            compute * self.profile.energy.core_pj_per_cycle
            + moved * memory.dram.energy_pj_per_bit
            + weights * memory.weights.write_pj_per_bit
            + activations * memory.activations.write_pj_per_bit
            # Units do not pass operands on: every multiply reads both from the buffers.
            + batch * loops.macs * choice.weight.width * memory.weights.read_pj_per_bit
            + batch * loops.macs * choice.activation.width * memory.activations.read_pj_per_bit
            # Partial sums pass through their buffer twice: to and from DRAM, to and from the array.
            + sums * (memory.outputs.read_pj_per_bit + memory.outputs.write_pj_per_bit)
        )
        return Run(max(compute, stream), bound, picojoule)

    def _lanes(self, native: tuple[int, int]) -> int:
        """Multiplications along the reduction that one column does at once."""
        base = self.profile.compute.base_bits
        return self.profile.compute.rows * prod(max(base // bits, 1) for bits in native)

    def _compute_cycles(self, loops: Loops, native: tuple[int, int]) -> int:
        array, lanes = self.profile.compute, self._lanes(native)
        if loops.kind == "depthwise" or loops.first:
            steps = ceil_div(loops.reduction, lanes)
        else:
            steps = loops.taps * ceil_div(loops.channels, lanes)
        passes = prod(ceil_div(bits, array.base_bits) for bits in native)
        return loops.groups * loops.pixels * ceil_div(loops.outputs, array.columns) * steps * passes

    def _traffic_bits(
        self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int
    ) -> tuple[float, float, float]:
        """Bits of weights (padded to whole array rows), activations, and partial sums read and written."""
        array, lanes = self.profile.compute, self._lanes(native)
        padded = loops.reduction if loops.kind == "depthwise" else ceil_div(loops.reduction, lanes) * lanes
        unrolled = loops.first and loops.kind == "convolution"
        inputs = loops.pixels * loops.reduction * loops.groups if unrolled else loops.fetched
        outputs = loops.pixels * ceil_div(loops.outputs, array.columns) * array.columns * loops.groups
        return (
            padded * loops.outputs * loops.groups * choice.weight.width,
            batch * inputs * choice.activation.width,
            2 * batch * outputs * array.partial_sum_bits,
        )
