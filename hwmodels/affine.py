"""An affine fit of measured layers: cycles linear in pixels, reduction, outputs and multiply-accumulates.

    cycles = pixels * (per_mac * K * N + per_reduction * K + per_output * N + per_pixel) + per_layer

with K products summed for each of N outputs. On a microcontroller the terms have names: the inner product, the unrolling
(im2col) of each input patch, the requantization of each output, and the loop around them. Widths scale two of them: the
unpacking of weights slows the product, that of activations the unrolling.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hwmodels.geometry import Loops
from hwmodels.machine import Arithmetic, MachineProfile, inherit
from hwmodels.schema import OperandWidth, Section

Cycles = Annotated[float, Field(ge=0, le=1e15)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]


class Scale(Section):
    """Factors for operands of these widths; a row that names one width holds for every width of the other operand."""

    weight_bits: OperandWidth | None = None
    activation_bits: OperandWidth | None = None
    mac_factor: Factor = 1.0
    reduction_factor: Factor = 1.0

    @model_validator(mode="after")
    def _names_a_width(self) -> Scale:
        if self.weight_bits is None and self.activation_bits is None:
            raise ValueError("say for which weight_bits or activation_bits the factors are")
        return self

    def applies(self, native: tuple[int, int]) -> bool:
        return self.weight_bits in (None, native[0]) and self.activation_bits in (None, native[1])


class Affine(Arithmetic):
    """Coefficients in cycles; every row of ``scales`` that applies multiplies.

    Without a row for 32 bits, float32 takes as many passes as its width has 8-bit pieces of either operand.
    """

    per_mac_cycles: Cycles
    per_reduction_cycles: Cycles = 0.0
    per_output_cycles: Cycles = 0.0
    per_pixel_cycles: Cycles = 0.0
    per_layer_cycles: Cycles = 0.0
    scales: list[Scale] = Field(default_factory=list)

    @model_validator(mode="after")
    def _takes_time(self) -> Affine:
        if not any((self.per_mac_cycles, self.per_reduction_cycles, self.per_output_cycles, self.per_pixel_cycles,
                    self.per_layer_cycles)):  # fmt: skip
            raise ValueError("every coefficient is 0: a layer that takes no time; give per_mac_cycles")
        keys = [(scale.weight_bits, scale.activation_bits) for scale in self.scales]
        if len(set(keys)) < len(keys):
            raise ValueError("scales: two rows for the same widths; keep one")
        return self

    def cycles(self, loops: Loops, native: tuple[int, int], batch: int, frequency_hz: float) -> float:
        mac = reduction = 1.0
        rows = [scale for scale in self.scales if scale.applies(native)]
        for scale in rows:
            mac, reduction = mac * scale.mac_factor, reduction * scale.reduction_factor
        if native == (32, 32) and not rows:
            mac, reduction = 16.0, 4.0
        # A depthwise layer reads its own patch for each output.
        patches = loops.outputs if loops.kind == "depthwise" else 1
        per_group = (
            self.per_mac_cycles * mac * loops.reduction * loops.outputs
            + self.per_reduction_cycles * reduction * loops.reduction * patches
            + self.per_output_cycles * loops.outputs
            + self.per_pixel_cycles
        )
        return batch * loops.groups * loops.pixels * per_group + self.per_layer_cycles


class AffineCompute(Affine):
    """[compute] of an affine fit; ``depthwise`` and ``linear`` change what they name."""

    kind: Literal["affine"]
    depthwise: Affine | None = None
    linear: Affine | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        return inherit(data)


class AffineProfile(MachineProfile):
    """A device known by a fit of its measured layers."""

    compute: AffineCompute
