"""A recipe as a checked model: what to search, and within what."""

from __future__ import annotations

import hashlib
import json
import re
from difflib import get_close_matches
from math import inf
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from haqsearch.config.sections import (
    LadderSettings,
    PtqSettings,
    QatSettings,
    Section,
    SplitSettings,
    TrainSettings,
)
from haqsearch.spec import METRICS, Budget, Choice, Format
from haqsearch.spec.formats import WEIGHTS

# Keys that may change in a run folder: they decide neither which policies are proposed nor what they score.
AFTERTHOUGHTS = ("qat", "storage", "max_evaluations", "max_time", "patience")


class Recipe(Section):
    """What to search. ``model``, ``data``, ``hardware`` and ``budget`` have no default; without ``weights`` the run trains the
    network itself. ``tradeoff``: metrics to be made small together with the objective; then the budget may be empty."""

    model: str
    weights: str = ""
    data: str
    hardware: str
    tradeoff: tuple[str, ...] = ()  # before the budget, whose check asks for it
    budget: tuple[str, ...]
    agent: str = "funnel"
    objective: Literal["accuracy", "loss", "kl", "logit_mse"] = "logit_mse"
    sensitivity: str = "objective"
    weight_bits: tuple[int, ...] = Field((2, 3, 4, 5, 6, 7, 8), min_length=1)
    weight_formats: tuple[str, ...] = ()
    activation_bits: tuple[int, ...] = Field((2, 3, 4, 5, 6, 7, 8), min_length=1)
    fixed: dict[str, str] = Field({})
    warm_start: tuple[str, ...] = ()
    prune_dominated: bool = False
    max_evaluations: int = Field(150, ge=1)
    max_time: str = ""
    patience: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    storage: str = ""
    split: SplitSettings = SplitSettings()
    ladder: LadderSettings = LadderSettings()
    ptq: PtqSettings = PtqSettings()
    qat: QatSettings = QatSettings()
    train: TrainSettings = TrainSettings()

    @field_validator("budget", "tradeoff", "warm_start", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("tradeoff")
    @classmethod
    def _metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METRICS:
                near = get_close_matches(name, METRICS, n=1, cutoff=0.3)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METRICS)}"
                raise ValueError(f"unknown metric {name!r}; {hint}")
        return tuple(dict.fromkeys(value))

    @field_validator("budget")
    @classmethod
    def _budgets(cls, value: tuple[str, ...], known: ValidationInfo) -> tuple[str, ...]:
        if not value and not known.data.get("tradeoff", True):  # absent where the trade-off itself is wrong
            raise ValueError('a search has at least 1 limit, or a trade-off: tradeoff = ["latency_s"]')
        for text in value:
            Budget.parse(text)
        return value

    @field_validator("ptq")
    @classmethod
    def _one_best(cls, value: PtqSettings, known: ValidationInfo) -> PtqSettings:
        if value.refine and known.data.get("tradeoff"):
            raise ValueError(
                "refine looks for one best policy, and a trade-off has a front of them; leave one of them out"
            )
        return value

    @field_validator("weight_bits", "activation_bits")
    @classmethod
    def _widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for bits in value:
            if not 2 <= bits <= 8:
                raise ValueError(f"{bits} bits: integer programs take 2 to 8")
        return value

    @field_validator("weight_formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if "weights" not in Format.parse(text).uses or Format.parse(text).is_float:
                raise ValueError(f"{text} is not for weights; write {WEIGHTS}")
        return tuple(dict.fromkeys(value))

    @field_validator("fixed")
    @classmethod
    def _choices(cls, value: dict[str, str]) -> dict[str, str]:
        for layer, text in value.items():
            choice = Choice.parse(text)
            for format in (choice.weight, choice.activation):
                if format.is_float or not 2 <= format.computed_as.width <= 8:
                    raise ValueError(f"{layer}: {text}: integer programs take 2 to 8 bits")
        return value

    @field_validator("max_time", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        _seconds(str(value))
        return value

    @field_validator("ladder")
    @classmethod
    def _below_all(cls, value: LadderSettings, info: ValidationInfo) -> LadderSettings:
        if value.rungs and info.data.get("tradeoff"):
            raise ValueError("rungs prune by one objective: leave them out where there is a tradeoff")
        split = info.data.get("split")
        if split and value.rungs and value.rungs[-1] >= split.search:
            raise ValueError(
                f"rungs end at {value.rungs[-1]} samples, but the search split has {split.search}: a rung is a part of it"
            )
        return value

    @property
    def max_seconds(self) -> float:
        """Seconds the search may take, all restarts together; infinite if ``max_time`` is empty."""
        return _seconds(self.max_time)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(Budget.parse(text) for text in self.budget)

    @property
    def weights_allowed(self) -> tuple[int | Format, ...]:
        """What weights may be, where they are searched: ``weight_formats`` if there are any, else integers of ``weight_bits``."""
        return tuple(map(Format.parse, self.weight_formats)) or self.weight_bits

    @property
    def fixed_choices(self) -> dict[str, Choice]:
        return {layer: Choice.parse(text) for layer, text in self.fixed.items()}

    @property
    def digest(self) -> str:
        """Digest of everything that decides which policies are proposed and what they score."""
        content = self.model_dump(mode="json", exclude=set(AFTERTHOUGHTS))
        del content["ptq"]["refine"], content["ptq"]["finalists"]  # come after the search
        if not self.ptq.steps:
            del content["ptq"]["steps"]  # as before there were any: runs go on
        if not self.prune_dominated:
            del content["prune_dominated"]  # likewise
        if self.split.sensitivity is None:
            del content["split"]["sensitivity"]  # likewise
        if self.sensitivity == "objective":
            del content["sensitivity"]  # likewise
        if not self.ladder.rungs:
            del content["ladder"]  # likewise
        for key in ("tradeoff", "weight_formats", "warm_start"):
            if not content[key]:
                del content[key]  # likewise
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _seconds(duration: str) -> float:
    if not duration:
        return inf
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", duration.strip())
    if not found or not float(found[1]):
        raise ValueError('write a time above 0 in s, min or h: "90 s", "20 min", "1.5 h"')
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]]
