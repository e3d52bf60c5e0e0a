"""The part of a device profile that every compute kind shares, and the device model made from it.

A profile is data: every number carries its unit in its name, every profile says where its numbers come from, and a
key nobody knows is an error. A compute kind adds its own sections by subclassing ``Profile`` and ``ProfiledDevice``.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec
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
Natural = Annotated[int, Field(ge=0, le=2**30)]
Share = Annotated[float, Field(gt=0, le=1), AfterValidator(_not_vanishing)]
Width = Annotated[int, Field(ge=1, le=16)]
OperandWidth = Annotated[int, Field(ge=1, le=32)]  # 32: float32
Pair = Annotated[tuple[Width, Width], Field(strict=False)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, strict=False)]


class Section(BaseModel):
    """A TOML table: unknown keys, numbers written as text, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Clock(Section):
    """``frequency_hz``: the clock that all cycles of the profile refer to."""

    frequency_hz: Rate


class Granularity(Section):
    """What may share a scale: ``tensor``, ``channel``, ``group``. Information for the reader; programs use channels."""

    weights: Annotated[list[Literal["tensor", "channel", "group"]], Field(min_length=1)]
    activations: Annotated[list[Literal["tensor", "channel", "group"]], Field(min_length=1)]


class Precision(Section):
    """Widths the arithmetic has.

    weight_bits, activation_bits   the native widths
    pairs             [weight, activation] widths that it has together; without it, every combination
    unsupported       another width is refused (``error``), or executed at the next wider native pair (``round_up``)
    storage           memory and traffic count the width as asked (``exact``), or as the next native one (``native``)
    channel_multiple  {width = n}: operands of so many bits need input channels in multiples of n; a layer that has not
                      takes the next wider width, or is refused, as ``unsupported`` says
    granularity       what may share a scale
    """

    weight_bits: Widths
    activation_bits: Widths
    pairs: tuple[Pair, ...] = Field((), strict=False)
    unsupported: Literal["error", "round_up"]
    storage: Literal["exact", "native"] = "exact"
    channel_multiple: dict[str, Count] = {}
    granularity: Granularity | None = None

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if list(widths) != sorted(set(widths)):
            raise ValueError("list the widths once each, from few bits to many")
        return widths

    @field_validator("channel_multiple")
    @classmethod
    def _widths(cls, multiples: dict[str, int]) -> dict[str, int]:
        for width in multiples:
            if width not in map(str, range(1, 17)):
                raise ValueError(f"{width!r} is not a width; write {{ 4 = 2 }} for 4 bits in multiples of 2 channels")
        return multiples

    @model_validator(mode="after")
    def _pairs_of_widths(self) -> Precision:
        for w, a in self.pairs:
            if w not in self.weight_bits or a not in self.activation_bits:
                raise ValueError(f"pair [{w}, {a}] is not among weight_bits x activation_bits; add the width there")
        return self

    @property
    def native_pairs(self) -> tuple[tuple[int, int], ...]:
        """Every (weight, activation) pair that the arithmetic has."""
        return self.pairs or tuple(product(self.weight_bits, self.activation_bits))

    def native(self, choice: Choice, channels: int = 0) -> tuple[int, int] | None:
        """(weight, activation) widths that ``choice`` is executed at, for ``channels`` input channels; None if it cannot
        be. Of several wider pairs, the one with the least product of widths.

        float32 runs as 32-bit operands: a layer left in float is charged the passes its width takes, never nothing.
        """
        if choice.weight.is_float or choice.activation.is_float:
            both = choice.weight.is_float and choice.activation.is_float
            return (choice.weight.width, choice.activation.width) if both else None
        asked = (choice.weight.width, choice.activation.width)
        pairs = [pair for pair in self.native_pairs if all(self._fits(bits, channels) for bits in pair)]
        if self.unsupported == "error":
            return asked if asked in pairs else None
        wider = [(w, a) for w, a in pairs if w >= asked[0] and a >= asked[1]]
        return min(wider, key=lambda pair: (pair[0] * pair[1], pair), default=None)

    def stored(self, choice: Choice, channels: int = 0) -> Choice:
        """``choice`` in the widths that memory holds."""
        if self.storage == "exact" or choice.weight.is_float or choice.activation.is_float:
            return choice
        return Choice(
            self._held(choice.weight, self.weight_bits, channels),
            self._held(choice.activation, self.activation_bits, channels),
        )

    def _held(self, format: Format, widths: tuple[int, ...], channels: int) -> Format:
        wider = [bits for bits in widths if bits >= format.width and self._fits(bits, channels)]
        return replace(format, width=wider[0]) if wider else format

    def _fits(self, bits: int, channels: int) -> bool:
        return channels % self.channel_multiple.get(str(bits), 1) == 0


class TableFile(Section):
    """A measured table laid over the model: a CSV ``file`` beside the profile (``hwmodels.table`` has its columns).

    extrapolation   a layer unlike every measured one is estimated and said to be so (``flag``), or refused (``refuse``)
    """

    file: Text
    extrapolation: Literal["flag", "refuse"] = "flag"


class Profile(Section):
    """A device file. ``default_batch``: samples per batch; ``latency_s`` and ``energy_j`` are for one such batch.

    sources   where the numbers come from; a file without is a draft, and every output says so
    assumed   dotted keys whose numbers no source gives: ``["clock.frequency_hz", "memory.dram.read_pj_per_bit"]``
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: Text
    summary: Text
    sources: list[Text] = []
    assumed: list[Text] = []
    default_batch: Count = 1
    clock: Clock
    precision: Precision
    table: TableFile | None = None

    @model_validator(mode="after")
    def _assumed_exist(self) -> Profile:
        for path in self.assumed:
            if not _given(self, path):
                raise ValueError(f"assumed: there is no number {path!r} in this file; write the dotted key of one")
        return self

    @property
    def draft(self) -> bool:
        """Whether nobody can tell where the numbers come from."""
        return not self.sources

    @abstractmethod
    def device(self) -> ProfiledDevice[Any]:
        """The model that prices layers with these numbers."""


def _given(section: Any, path: str) -> bool:
    """Whether the dotted ``path`` leads to something; entries of a list are called by their name or number."""
    for part in path.split("."):
        if isinstance(section, BaseModel):
            section = getattr(section, part, None) if part in type(section).model_fields else None
        elif isinstance(section, list | tuple):
            by_name = {getattr(entry, "name", str(i)): entry for i, entry in enumerate(section)}
            section = by_name.get(part)
        else:
            section = None
        if section is None:
            return False
    return True


P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class Run:
    """One layer on the device, for one batch: cycles, what they are bound by, energy in picojoule, and the seconds of each
    resource if nothing else held it up."""

    cycles: float
    bound: str
    energy_pj: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class ProfiledDevice(HardwareModel, Generic[P]):
    """A device whose numbers come from a profile; a compute kind implements ``run``."""

    metrics: tuple[str, ...] = ("latency_s", "energy_j")

    def __init__(self, profile: P) -> None:
        self.profile = profile
        self.name, self.default_batch, self.draft = profile.name, profile.default_batch, profile.draft
        self.summary = profile.summary + (" (draft: names no sources)" if profile.draft else "")
        self._digest = hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:16]
        self._native: dict[tuple[Choice, int], tuple[int, int] | None] = {}

    @property
    def digest(self) -> str:
        return self._digest

    @property
    def native_pairs(self) -> tuple[tuple[int, int], ...]:
        """Every (weight, activation) pair that the arithmetic has."""
        return self.profile.precision.native_pairs

    @property
    def bandwidth_bytes_per_s(self) -> float | None:
        """Bandwidth of the outermost memory; None if the profile does not say."""
        return None

    def peak_macs_per_s(self, w: int, a: int) -> float:
        """Multiply-accumulates per second of a layer that fills the arithmetic, memory aside."""
        run = self.run(_BIG, Choice(Format("int", w), Format("uint", a)), (w, a), 1)
        return _BIG.macs / (run.seconds.get("compute") or run.cycles / self.profile.clock.frequency_hz)

    def native(self, layer: LayerSpec, choice: Choice) -> tuple[int, int] | None:
        """(weight, activation) widths that the layer is executed at; None if it cannot be."""
        key = (choice, input_channels(layer))
        if key not in self._native:
            self._native[key] = self.profile.precision.native(*key)
        return self._native[key]

    def stored(self, layer: LayerSpec, choice: Choice) -> Choice:
        return self.profile.precision.stored(choice, input_channels(layer))

    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        return (layer.quantizable or choice.weight.is_float) and self.native(layer, choice) is not None

    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> LayerCost:
        native = self.native(layer, choice)
        if native is None or not self.supports(layer, choice):
            raise HardwareError(self._refusal(layer, choice))
        if batch < 1:
            raise HardwareError(f"{self.name}: batch {batch} is not a number of samples; give 1 or more")
        run = self.run(self.loops(layer), self.stored(layer, choice), native, batch)
        values = {"latency_s": run.cycles / self.profile.clock.frequency_hz, "energy_j": run.energy_pj * 1e-12}
        kept = {metric: values[metric] for metric in self.metrics}
        return LayerCost(kept, run.bound, f"profile {self.name}", run.seconds)

    def loops(self, layer: LayerSpec) -> Loops:
        """One sample's work of ``layer``."""
        return Loops.of(layer)

    def bind(self, model: ModelSpec) -> ProfiledDevice[P]:
        return self

    @abstractmethod
    def run(self, loops: Loops, choice: Choice, native: tuple[int, int], batch: int) -> Run:
        """The layer stored as ``choice`` and executed at the ``native`` (weight, activation) widths."""

    def _refusal(self, layer: LayerSpec, choice: Choice) -> str:
        precision = self.profile.precision
        text = (
            f"{self.name}: layer {layer.name!r} cannot run at {choice}: "
            f"weights take {_listed(precision.weight_bits)} bits, activations {_listed(precision.activation_bits)}; "
        )
        if precision.pairs:
            text += f"together as {', '.join(f'w{w}a{a}' for w, a in precision.pairs)}; "
        if precision.channel_multiple:
            needs = ", ".join(f"{bits} bits in {n}s" for bits, n in precision.channel_multiple.items())
            text += f"{input_channels(layer)} input channels, where {needs}; "
        return text + "a layer that is not quantizable takes float32"


_BIG = Loops.of(
    LayerSpec(
        "big", "conv2d", (4096, 64, 64), (4096, 4096, 3, 3), (4096, 64, 64), 9 * 2**36, kernel=(3, 3), inputs=("any",)
    )
)


def input_channels(layer: LayerSpec) -> int:
    """Channels (features) that the layer reads; 0 if its shape does not say."""
    return layer.weight_shape[1] * layer.groups if len(layer.weight_shape) > 1 else 0


def _listed(widths: tuple[int, ...]) -> str:
    return ", ".join(map(str, widths))
