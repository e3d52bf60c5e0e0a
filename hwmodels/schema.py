"""The part of a device profile that every compute kind shares, and the device model made from it.

A profile is data: every number carries its unit in its name, every profile says where its numbers come from, and a
key nobody knows is an error. A compute kind adds its own sections by subclassing ``Profile`` and ``ProfiledDevice``.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, LayerSpec
from hwmodels.base import HardwareModel, LayerCost
from hwmodels.geometry import Loops


def _not_vanishing(rate: float) -> float:
    if rate < 1e-9:  # its inverse, a time, could overflow
        raise ValueError("should be at least 1e-9")
    return rate


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**20)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
Rate = Annotated[float, Field(gt=0, le=1e18), AfterValidator(_not_vanishing)]
Energy = Annotated[float, Field(ge=0, le=1e12)]
Width = Annotated[int, Field(ge=1, le=16)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, strict=False)]


class Section(BaseModel):
    """A TOML table: unknown keys, numbers written as text, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Clock(Section):
    """``frequency_hz``: the clock that all cycles of the profile refer to."""

    frequency_hz: Rate


class Precision(Section):
    """Widths the arithmetic has. Any other width is refused (``error``) or executed at the next wider native width
    (``round_up``); memory and traffic always count the width as stored."""

    weight_bits: Widths
    activation_bits: Widths
    unsupported: Literal["error", "round_up"]

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths)):
            raise ValueError("list the widths once each, from few bits to many")
        return widths

    def native(self, choice: Choice) -> tuple[int, int] | None:
        """(weight, activation) widths that ``choice`` is executed at; None if it cannot be.

        float32 runs as 32-bit operands: a layer left in float is charged the passes its width takes, never nothing.
        """
        if choice.weight.is_float or choice.activation.is_float:
            both = choice.weight.is_float and choice.activation.is_float
            return (choice.weight.width, choice.activation.width) if both else None
        weight = self._wider(choice.weight.width, self.weight_bits)
        activation = self._wider(choice.activation.width, self.activation_bits)
        return (weight, activation) if weight and activation else None

    def _wider(self, width: int, native: tuple[int, ...]) -> int | None:
        if self.unsupported == "error":
            return width if width in native else None
        return min((n for n in native if n >= width), default=None)


class Profile(Section):
    """A device file. ``default_batch``: samples per batch; ``latency_s`` and ``energy_j`` are for one such batch."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Text
    summary: Text
    sources: Annotated[list[Text], Field(min_length=1)]
    default_batch: Count = 1
    clock: Clock
    precision: Precision

    @abstractmethod
    def device(self) -> HardwareModel:
        """The model that prices layers with these numbers."""


P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class Run:
    """One layer on the device, for one batch: cycles, what they are bound by, energy in picojoule."""

    cycles: float
    bound: str
    energy_pj: float


class ProfiledDevice(HardwareModel, Generic[P]):
    """A device whose numbers come from a profile; a compute kind implements ``run``."""

    metrics = ("latency_s", "energy_j")

    def __init__(self, profile: P) -> None:
        self.profile = profile
        self.name, self.summary, self.default_batch = profile.name, profile.summary, profile.default_batch
        self._digest = hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:16]

    @property
    def digest(self) -> str:
        return self._digest

    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        return (layer.quantizable or choice.weight.is_float) and self.profile.precision.native(choice) is not None

    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> LayerCost:
        native = self.profile.precision.native(choice)
        if native is None or not self.supports(layer, choice):
            widths = self.profile.precision
            raise HardwareError(
                f"{self.name}: layer {layer.name!r} cannot run at {choice}: "
                f"weights take {_listed(widths.weight_bits)} bits, activations {_listed(widths.activation_bits)}; "
                "a layer that is not quantizable takes float32"
            )
        if batch < 1:
            raise HardwareError(f"{self.name}: batch {batch} is not a number of samples; give 1 or more")
        run = self.run(Loops.of(layer), choice, native, batch)
        values = {"latency_s": run.cycles / self.profile.clock.frequency_hz, "energy_j": run.energy_pj * 1e-12}
        return LayerCost(values, run.bound, f"profile {self.name}")

    @abstractmethod
    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        """The layer stored as ``choice`` and executed at the ``native`` (weight, activation) widths."""


def _listed(widths: tuple[int, ...]) -> str:
    return ", ".join(map(str, widths))
