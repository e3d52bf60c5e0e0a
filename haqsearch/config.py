"""A recipe (TOML) as a checked model. An unknown key is an error that says what was probably meant."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from haqsearch.errors import HaqError, RecipeError
from haqsearch.spec import METRICS, Budget, Choice, Format
from haqsearch.spec.formats import WEIGHTS
from haqsearch.spec.ptq import ptq_steps

# Keys that may change in a run folder: they decide neither which policies are proposed nor what they score.
AFTERTHOUGHTS = ("qat", "storage", "max_evaluations", "max_time", "patience")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitSettings(_Section):
    """Sizes of the splits in samples; ``report`` None: the data set's test part, or a quarter of it."""

    calibrate: int = Field(1024, ge=1)
    search: int = Field(2000, ge=1)
    report: int | None = Field(None, ge=1)


class PtqSettings(_Section):
    """Post-training quantization. ``plain``: least-squared-error ranges and nearest rounding. ``fast``: weights rounded, once
    per layer and width, so that the layer's output stays close, with bias correction; better below 6 bits. ``accurate``: the
    search as ``fast``, the chosen policies rounded once more in network order, against the inputs they really get.

    ``steps``: in place of a preset, the steps of ``haqsearch.spec.ptq`` one by one.

    ``refine``: evaluations of a second search that begins with the best policies of the first and rounds each policy in network
    order, quickly; what is best so is not always what is best rounded layer by layer. It wants the step ``in_order``."""

    preset: Literal["plain", "fast", "accurate"] = "plain"
    steps: tuple[str, ...] = ()
    refine: int = Field(0, ge=0)

    @field_validator("steps")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return ptq_steps("plain", value) if value else value

    @model_validator(mode="after")
    def _refines_what_is_finished(self) -> PtqSettings:
        if self.refine and "in_order" not in self.pipeline:
            raise ValueError(
                'refine rounds in network order, which the chosen policies then need too: preset = "accurate", or the step '
                '"in_order"'
            )
        return self

    @property
    def pipeline(self) -> tuple[str, ...]:
        """The steps to be done, in order."""
        return ptq_steps(self.preset, self.steps)


class LadderSettings(_Section):
    """Samples of the search split that every policy is scored on first: on each of ``rungs`` one in ``reduction`` is promoted.

    ``trial_run`` policies go all the way; a rung whose rank correlation with the next over them is below ``least_correlation``
    is dropped. Defaults as of ``haqsearch.search.ladder.Ladder``.
    """

    rungs: tuple[int, ...] = ()
    reduction: int = Field(2, ge=2)
    trial_run: int = Field(8, ge=3)
    least_correlation: float = Field(0.8, ge=-1, le=1)

    @field_validator("rungs")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in zip((0, *value), value, strict=False)):
            raise ValueError("numbers of samples, from few to many")
        return value


class QatSettings(_Section):
    """The best ``candidates`` policies of the search enter a last ladder; the best of it is fine-tuned for ``steps`` steps.

    All are rounded as the preset says. The better half, at least two (all, where the preset rounds nothing anew), is fine-tuned
    for a quarter of the steps, and the best of these in full; a single one in full at once. 0: no training.

    ``baseline``: the best uniform policy is fine-tuned likewise, so that the search is compared with its equal.
    """

    candidates: int = Field(2, ge=0)
    baseline: bool = True
    steps: int = Field(300, ge=1)
    batch: int = Field(128, ge=1)
    learning_rate: float = Field(3e-5, gt=0)


class TrainSettings(_Section):
    """Training of the float network, where the recipe names no weights."""

    epochs: int = Field(60, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(4e-3, gt=0)


class Recipe(_Section):
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
    fixed: dict[str, str] = {}
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
        del content["ptq"]["refine"]  # comes after the search
        if not self.ptq.steps:
            del content["ptq"]["steps"]  # as before there were any: runs go on
        if not self.prune_dominated:
            del content["prune_dominated"]  # likewise
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


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe in the TOML file ``path`` with ``key=value`` overrides applied (dotted keys, TOML values or bare words).

    Raises RecipeError that names file, key and mend.
    """
    if not path.is_file():
        beside = [p.stem for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = get_close_matches(path.stem, beside, n=1, cutoff=0.5)
        raise RecipeError(f"no recipe {path}" + (f"; did you mean {path.parent / near[0]}.toml?" if near else ""))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    for text in overrides:
        _override(content, text)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(_explain(error, content))}") from None
    except HaqError as error:
        raise RecipeError(f"{path}: {error}") from None


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r}: write key=value, for example qat.steps=200")
    *parents, last = key.strip().split(".")
    section = content
    for parent in parents:
        inner = section.setdefault(parent, {})
        field = Recipe.model_fields.get(parent) if section is content else None
        if not isinstance(inner, dict) or (field is not None and not isinstance(field.get_default(), dict | _Section)):
            raise RecipeError(f"--set {text!r}: {parent!r} is no section")
        section = inner
    try:
        section[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        section[last] = value.strip()


def _explain(error: ValidationError, content: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each mistake pydantic found."""
    for item in error.errors():
        place = [str(part) for part in item["loc"]]
        key = ".".join(place)
        if item["type"] == "extra_forbidden":
            section: Any = Recipe
            for part in place[:-1]:
                section = section.model_fields[part].annotation
            near = get_close_matches(place[-1], section.model_fields, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(section.model_fields)}"
            yield f"unknown key {key!r}; {known}"
        elif item["type"] == "missing":
            yield f"key {key!r} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            yield f"{key} = {item['input']!r}: {message[:1].lower()}{message[1:]}"


def flat(recipe: Recipe) -> dict[str, str]:
    """Every key of the recipe, dotted, with its value as TOML."""
    found: dict[str, str] = {}
    for key, value in recipe.model_dump(mode="json").items():
        section = value if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): _toml(v) for name, v in section.items()}
    return found


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every default written out."""
    content = recipe.model_dump(mode="json")
    lines = [
        f"{key} = {_toml(value)}" for key, value in content.items() if not isinstance(value, dict) or key == "fixed"
    ]
    for key, value in content.items():
        if isinstance(value, dict) and key != "fixed":
            lines += ["", f"[{key}]", *[f"{name} = {_toml(v)}" for name, v in value.items() if v is not None]]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
