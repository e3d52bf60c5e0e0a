"""An array of lanes: pixels x outputs x reduction multipliers side by side, narrow operands fused or fed bit by bit.

    cycles = batch * groups * ceil(pixels / p) * ceil(outputs / n) * (steps * passes * cycles_per_step + fill)
    steps  = ceil(reduction / lanes), or taps * ceil(channels / lanes) where kernel taps follow one after the other

The ceilings are the point: a layer that does not fill the lanes pays for them all. ``spatial.py`` and ``bitserial.py`` know
more about two particular arrays; this kind is for all those of which a data sheet tells the dimensions.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from pydantic import model_validator

from hwmodels.geometry import Loops, ceil_div
from hwmodels.machine import Arithmetic, MachineProfile, inherit
from hwmodels.schema import Count, Natural


class Lanes(Arithmetic):
    """The array.

    pixels, outputs, reduction   lanes along each: output positions, output channels, products summed
    operand_bits         widest operands that a lane multiplies in one pass; wider ones take several
    fusion               a lane multiplies operand_bits / w * operand_bits / a products of narrow operands at once
    passes               a step repeats for every bit of the weight (``w``), of the activation (``a``), of both (``w*a``)
    reduction_mapping    all of taps * channels along the lanes (``unrolled``), or only channels (``taps_in_time``)
    cycles_per_step      of one step of all lanes
    least_pixel_steps    steps that a weight is held for even if there are fewer pixels
    fill_cycles          of each tile of pixels and outputs
    """

    pixels: Count = 1
    outputs: Count
    reduction: Count
    operand_bits: Count = 8
    fusion: bool = False
    passes: Literal["1", "w", "a", "w*a"] = "1"
    reduction_mapping: Literal["unrolled", "taps_in_time"] = "unrolled"
    cycles_per_step: Count = 1
    least_pixel_steps: Count = 1
    fill_cycles: Natural = 0

    def cycles(self, loops: Loops, native: tuple[int, int], batch: int, frequency_hz: float) -> float:
        lanes = self.reduction * (prod(max(self.operand_bits // bits, 1) for bits in native) if self.fusion else 1)
        in_time = self.reduction_mapping == "taps_in_time"
        steps = loops.taps * ceil_div(loops.channels, lanes) if in_time else ceil_div(loops.reduction, lanes)
        passes = prod(
            bits if name in self.passes else ceil_div(bits, self.operand_bits)
            for name, bits in zip("wa", native, strict=True)
        )
        pixel_steps = max(ceil_div(loops.pixels, self.pixels), self.least_pixel_steps)
        tiles = batch * loops.groups * pixel_steps * ceil_div(loops.outputs, self.outputs)
        return tiles * (steps * passes * self.cycles_per_step + self.fill_cycles)


class LanesCompute(Lanes):
    """[compute] of an array of lanes; ``depthwise`` and ``linear`` change what they name."""

    kind: Literal["lanes"]
    depthwise: Lanes | None = None
    linear: Lanes | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        return inherit(data)


class LanesProfile(MachineProfile):
    """A device with an array of lanes."""

    compute: LanesCompute
