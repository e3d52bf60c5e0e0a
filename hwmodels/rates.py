"""A table of rates: multiply-accumulates per cycle or per second by widths, as kernels and data sheets state them.

Fewer bits are not always faster: unpacking 4-bit weights costs a RISC-V core with 8-bit products more than it saves
[pulp-nn-mixed, XpulpV2], and a GPU has the widths its tensor cores have. So rates are a table, never a formula of widths.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hwmodels.geometry import Loops, ceil_div
from hwmodels.machine import Arithmetic, MachineProfile, inherit
from hwmodels.schema import Count, OperandWidth, Rate, Section, Share


class RateRow(Section):
    """The rate of one pair of widths: ``macs_per_cycle`` of one core, or ``tera_ops_per_s`` of the whole device, an operation
    being a multiplication or an addition as data sheets count. Dense: sparse figures are twice what a network gets."""

    weight_bits: OperandWidth
    activation_bits: OperandWidth
    macs_per_cycle: Rate | None = None
    tera_ops_per_s: Rate | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> RateRow:
        if (self.macs_per_cycle is None) == (self.tera_ops_per_s is None):
            raise ValueError("give the rate once: macs_per_cycle or tera_ops_per_s")
        return self

    @property
    def pair(self) -> tuple[int, int]:
        return self.weight_bits, self.activation_bits


class Rates(Arithmetic):
    """Rates by widths.

    cores        that share a layer evenly (of rates in macs_per_cycle)
    efficiency   share of the rate that layers get
    pixel_multiple, output_multiple, reduction_multiple   what a kernel's tile pads the layer to
    rates        a row of 32 x 32 bits is float32; without it, float takes as many passes of the widest row as its width
    """

    cores: Count = 1
    efficiency: Share = 1.0
    pixel_multiple: Count = 1
    output_multiple: Count = 1
    reduction_multiple: Count = 1
    rates: Annotated[list[RateRow], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> Rates:
        pairs = [row.pair for row in self.rates]
        if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
            raise ValueError("rates: w{}a{} has two rows; keep one".format(*twice[0]))
        return self

    def check(self, pairs: tuple[tuple[int, int], ...]) -> None:
        known = {row.pair for row in self.rates}
        for w, a in pairs:
            if (w, a) not in known:
                raise ValueError(f"no rate for w{w}a{a}; add its row to rates, or leave it out of precision.pairs")
        if strangers := sorted(known - set(pairs) - {(32, 32)}):
            w, a = strangers[0]
            raise ValueError(f"a rate for w{w}a{a}, which precision does not have; add the pair there")

    def macs_per_s(self, native: tuple[int, int], frequency_hz: float) -> float:
        """Rate of the whole device at ``native`` widths, efficiency included."""
        row = next((row for row in self.rates if row.pair == native), None)
        passes = 1.0
        if row is None:
            row = max(self.rates, key=lambda row: row.weight_bits * row.activation_bits)
            passes = native[0] * native[1] / (row.weight_bits * row.activation_bits)
        if row.tera_ops_per_s is not None:
            rate = row.tera_ops_per_s * 1e12 / 2
        else:
            assert row.macs_per_cycle is not None
            rate = row.macs_per_cycle * self.cores * frequency_hz
        return rate * self.efficiency / passes

    def cycles(self, loops: Loops, native: tuple[int, int], batch: int, frequency_hz: float) -> float:
        pixels = _padded(loops.pixels * batch, self.pixel_multiple)
        outputs = _padded(loops.outputs, self.output_multiple)
        macs = loops.groups * pixels * outputs * _padded(loops.reduction, self.reduction_multiple)
        return macs / self.macs_per_s(native, frequency_hz) * frequency_hz


def _padded(length: int, multiple: int) -> int:
    return ceil_div(length, multiple) * multiple


class RatesCompute(Rates):
    """[compute] of a table of rates; ``depthwise`` and ``linear`` change what they name."""

    kind: Literal["rates"]
    depthwise: Rates | None = None
    linear: Rates | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        return inherit(data)


class RatesProfile(MachineProfile):
    """A device with a table of rates."""

    compute: RatesCompute
