"""A device described by its data sheet: arithmetic, memories, traffic, overhead, energy.

    latency   max (or sum) of the arithmetic's time and of every memory's time, plus the overhead of a layer
    memory    bits through it / bandwidth; weights, inputs and outputs pass through each memory that holds them
    energy    multiply-accumulates x energy each + bits x energy per bit at every memory + static power x latency

The arithmetic is one of a few kinds (``lanes.py``, ``rates.py``, ``affine.py``); everything else is here. That a layer takes
the longest of its resources is what every public simulator says [Vela, ethosu/vela/npu_performance.py; BitFusion,
optimizer.py]; that they add up holds for cores that wait for their own transfers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, model_validator

from haqsearch.spec import Choice, LayerSpec, ModelSpec
from hwmodels.geometry import Loops
from hwmodels.levels import Level, Traffic, transfers
from hwmodels.schema import Energy, OperandWidth, Profile, ProfiledDevice, Run, Section

_NAMES = {"weights": "weights", "inputs": "activations", "outputs": "outputs"}  # what `bound` calls them
OPS = ("depthwise", "linear")  # layers whose arithmetic a profile may describe apart


class Arithmetic(Section):
    """Turns a layer into cycles of busy arithmetic; a compute kind implements ``cycles``."""

    @abstractmethod
    def cycles(self, loops: Loops, native: tuple[int, int], batch: int, frequency_hz: float) -> float:
        """Cycles of ``batch`` samples executed at the ``native`` (weight, activation) widths."""

    def check(self, pairs: tuple[tuple[int, int], ...]) -> None:
        """Raise ValueError if the arithmetic has no answer for one of the native ``pairs``."""


def inherit(data: Any) -> Any:
    """[compute] with every override completed by what [compute] itself says."""
    if not isinstance(data, dict):
        return data
    common = {key: value for key, value in data.items() if key not in (*OPS, "kind")}
    return {
        key: {**common, **value} if key in OPS and isinstance(value, dict) else value for key, value in data.items()
    }


class MacEnergy(Section):
    """``pj``: energy of one multiply-accumulate of these widths; 32 x 32 is float32."""

    weight_bits: OperandWidth
    activation_bits: OperandWidth
    pj: Energy


class Energies(Section):
    """Energy of the arithmetic, as the sum of what is given, and static power.

    mac                  a table of widths; of a pair without a row, the next wider row scaled by the product of widths
    multiply_pj_per_bit2, multiply_pj_per_bit   of one product: x * w * a + y * (w + a) / 2
    accumulate_pj        of one addition to the accumulator
    core_pj_per_cycle    of a busy cycle of the whole arithmetic
    static_w             watts for as long as the layer takes
    """

    mac: list[MacEnergy] = Field(default_factory=list)
    multiply_pj_per_bit2: Energy = 0.0
    multiply_pj_per_bit: Energy = 0.0
    accumulate_pj: Energy = 0.0
    core_pj_per_cycle: Energy = 0.0
    static_w: Energy = 0.0

    @model_validator(mode="after")
    def _once(self) -> Energies:
        pairs = [(row.weight_bits, row.activation_bits) for row in self.mac]
        if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
            raise ValueError("mac: w{}a{} has two rows; keep one".format(*twice[0]))
        return self

    def mac_pj(self, w: int, a: int) -> float:
        """Energy of one multiply-accumulate executed at ``w`` x ``a`` bits."""
        product = self.multiply_pj_per_bit2 * w * a + self.multiply_pj_per_bit * (w + a) / 2
        if not self.mac:
            return product + self.accumulate_pj
        wider = [row for row in self.mac if row.weight_bits >= w and row.activation_bits >= a]
        row = min(wider or self.mac, key=lambda row: row.weight_bits * row.activation_bits * (1 if wider else -1))
        exact = (row.weight_bits, row.activation_bits) == (w, a)
        scale = 1.0 if exact else w * a / (row.weight_bits * row.activation_bits)
        return row.pj * scale + product + self.accumulate_pj


class Overhead(Section):
    """What every layer takes besides: starting it, setting it up."""

    per_layer_s: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    per_layer_cycles: Annotated[float, Field(ge=0, le=1e15)] = 0.0


class MachineProfile(Profile):
    """A data-sheet device; every kind of arithmetic is a subclass that gives ``compute`` its type."""

    compute: Any
    memory: list[Level] = Field(default_factory=list)
    traffic: Traffic = Traffic()
    energy: Energies | None = None
    overhead: Overhead = Overhead()

    @property
    def arithmetic(self) -> dict[str, Arithmetic]:
        """By kind of loops; ``convolution`` is always there."""
        apart = {op: getattr(self.compute, op) for op in OPS}
        return {"convolution": self.compute, **{op: found for op, found in apart.items() if found is not None}}

    @model_validator(mode="after")
    def _complete(self) -> MachineProfile:
        names = [level.name for level in self.memory]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"memory: two are called {twice[0]!r}; give each its own name")
        for op, arithmetic in self.arithmetic.items():
            try:
                arithmetic.check(self.precision.native_pairs)
            except ValueError as error:
                raise ValueError(f"compute{'' if op == 'convolution' else f'.{op}'}: {error}") from None
        return self

    def device(self) -> Machine:
        return Machine(self)


class Machine(ProfiledDevice[MachineProfile]):
    """Prices layers by the data sheet. ``weights_before``: weights of the layers that come earlier, by layer name."""

    def __init__(self, profile: MachineProfile) -> None:
        super().__init__(profile)
        if profile.energy is None:
            self.metrics = ("latency_s",)
        self._arithmetic = profile.arithmetic
        self._weights_before: dict[str, int] = {}

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        rates = [level.bits_per_s(self.profile.clock.frequency_hz) for level in self.profile.memory]
        return next((rate / 8 for rate in rates if rate is not None), None)

    def bind(self, model: ModelSpec) -> Machine:
        bound, before = Machine(self.profile), 0
        for layer in model:
            bound._weights_before[layer.name] = before
            before += layer.weight_count if layer.weight_shape else 0
        return bound

    def loops(self, layer: LayerSpec) -> Loops:
        return replace(super().loops(layer), weights_before=self._weights_before.get(layer.name, 0))

    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        profile, frequency = self.profile, self.profile.clock.frequency_hz
        arithmetic = self._arithmetic.get(loops.kind, self._arithmetic["convolution"])
        cycles = arithmetic.cycles(loops, native, batch, frequency)
        through = transfers(profile.memory, profile.traffic, loops, choice, batch)
        seconds = {"compute": cycles / frequency, **dict.fromkeys(_NAMES.values(), 0.0)}
        times = []
        for level, bits in zip(profile.memory, through, strict=True):
            rate = level.bits_per_s(frequency)
            if rate is not None:
                times.append(sum(bits.values()) / rate)
                for tensor, amount in bits.items():
                    seconds[_NAMES[tensor]] = max(seconds[_NAMES[tensor]], amount / rate)
        overhead = profile.overhead.per_layer_s + profile.overhead.per_layer_cycles / frequency
        parts = [seconds["compute"], *times]
        latency = (max(parts) if profile.traffic.overlap == "max" else sum(parts)) + overhead
        seconds["overhead"] = overhead
        if overhead > latency - overhead:
            bound = "overhead"
        elif seconds["compute"] >= max(times, default=0.0):
            bound = "compute"
        else:
            bound = max(_NAMES.values(), key=lambda name: seconds[name])
        energy = self._static_and_core_pj(cycles, latency) + self._macs_pj(loops, native, batch)
        energy += self._memory_pj(loops, choice, batch, through)
        return Run(latency * frequency, bound, energy, seconds)

    def _static_and_core_pj(self, cycles: float, latency: float) -> float:
        energy = self.profile.energy
        return cycles * energy.core_pj_per_cycle + latency * energy.static_w * 1e12 if energy else 0.0

    def _macs_pj(self, loops: Loops, native: tuple[int, int], batch: int) -> float:
        return batch * loops.macs * self.profile.energy.mac_pj(*native) if self.profile.energy else 0.0

    def _memory_pj(self, loops: Loops, choice: Choice, batch: int, through: list[dict[str, float]]) -> float:
        widths = {"weights": choice.weight.width, "inputs": choice.activation.width}
        total = 0.0
        for level, moved in zip(self.profile.memory, through, strict=True):
            for tensor, bits in moved.items():
                if tensor == "outputs":
                    total += bits * level.write_pj_per_bit
                elif level.reads == "per_mac":
                    operands = batch * loops.macs * widths[tensor]
                    total += bits * level.write_pj_per_bit + operands * level.read_pj_per_bit
                else:
                    total += bits * level.read_pj_per_bit
        return total
