"""What a run folder holds, read once and checked: the only file of the report that touches the disk to read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from haqsearch.errors import HaqError
from haqsearch.report.units import finite
from haqsearch.spec import METRICS, OBJECTIVES, Objective

SCHEMA_VERSION = 1


class ReportError(HaqError):
    """A run folder lacks a file, or a file of it cannot be read."""


@dataclass(frozen=True)
class Bits:
    """Width of one tensor as its format's text says it; ``width`` is None where the text holds no number."""

    text: str
    width: float | None
    is_float: bool

    @classmethod
    def parse(cls, text: Any) -> Bits:
        name = "" if text is None else str(text)
        number = re.search(r"\d+(\.\d+)?", name)
        return cls(name, float(number[0]) if number else None, name.startswith("float"))


@dataclass(frozen=True)
class Layer:
    """One layer of the chosen policy with its costs (base units); ``costs`` lacks what the device does not know.

    ``buys_nothing``: the operands (weight, activation) whose next narrower width would save less than 1 % on the device.
    """

    name: str
    op: str
    in_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: float | None
    pinned: bool
    bound: str
    weight: Bits
    activation: Bits
    costs: Mapping[str, float] = field(default_factory=dict)
    buys_nothing: tuple[str, ...] = ()

    @property
    def weight_count(self) -> float | None:
        return float(prod(self.weight_shape)) if self.weight_shape else None


@dataclass(frozen=True)
class Trial:
    """One evaluated policy; accuracy, loss, kl and logit_mse are on the search split, None where the evaluation failed."""

    number: int
    source: str
    digest: str
    feasible: bool
    violation: float | None
    accuracy: float | None
    loss: float | None
    kl: float | None
    score: float | None
    metrics: Mapping[str, float | None]
    choices: tuple[str, ...]
    error: str = ""
    logit_mse: float | None = None

    @property
    def uniform(self) -> bool:
        return self.source == "uniform"

    @property
    def widths(self) -> str:
        """``w4a8`` where most layers share one choice (a uniform policy), else the mean widths."""
        if not self.choices:
            return ""
        if self.uniform:
            return Counter(self.choices).most_common(1)[0][0]
        return mean_widths(self.choices)


@dataclass(frozen=True)
class Run:
    """A whole run folder. ``summary`` and ``environment`` are as written; the rest is parsed."""

    folder: Path
    summary: Mapping[str, Any]
    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]
    pareto: tuple[Trial, ...]
    environment: Mapping[str, Any]

    @property
    def objective(self) -> Objective:
        name = str(self.summary.get("objective") or "")
        return OBJECTIVES.get(name, Objective("score", "score (more is better)", +1))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the run: those with a budget first, then the others in the vocabulary's order."""
        limited = [str(line.get("metric")) for line in self.budget]
        known = [m for m in METRICS if any(m in t.metrics for t in self.trials) or m in self.mapping("metrics")]
        return tuple(dict.fromkeys([*limited, *known, *self.mapping("metrics")]))

    @property
    def budget(self) -> tuple[Mapping[str, Any], ...]:
        lines = self.summary.get("budget")
        return tuple(line for line in lines if isinstance(line, dict)) if isinstance(lines, list) else ()

    @property
    def chosen(self) -> Trial | None:
        """The trial of the chosen policy; None if it was never scored on the search split."""
        digest = self.summary.get("policy_digest")
        found = [t for t in (*self.trials, *self.pareto) if digest and t.digest == digest and t.accuracy is not None]
        return found[0] if found else None

    def mapping(self, key: str) -> Mapping[str, Any]:
        """The object under ``key`` of the summary, empty where it is null or missing."""
        value = self.summary.get(key)
        return value if isinstance(value, dict) else {}

    def number(self, key: str) -> float | None:
        return finite(self.summary.get(key))


def mean_widths(choices: tuple[str, ...]) -> str:
    """Mean weight and activation width over the layers that are quantized: ``mean w4.3 a6.0``."""
    pairs = [tuple(Bits.parse(p).width or 0.0 for p in _sides(c)) for c in choices if not c.startswith("float")]
    if not pairs:
        return "float32"
    w, a = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    return f"mean w{w:.1f} a{a:.1f}"


def load(folder: Path) -> Run:
    """Read a run folder. Raises ReportError naming the file and what is wrong with it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such run folder; give the folder that `haqsearch run` wrote")
    summary = _json(folder / "summary.json")
    _check_version(folder / "summary.json", summary)
    policy: Mapping[str, Any] = {}
    if (folder / "policy.json").exists() or summary.get("policy_digest"):
        policy = _json(folder / "policy.json")
        _check_version(folder / "policy.json", policy)
    trials = _trials(folder / "trials.parquet")
    pareto = _json(folder / "pareto.json")
    environment = _json(folder / "environment.json")
    points = pareto.get("points") or []
    return Run(
        folder=folder,
        summary=summary,
        layers=_layers(policy),
        trials=trials,
        pareto=tuple(_pareto_point(p, i) for i, p in enumerate(points, start=1) if isinstance(p, dict)),
        environment=environment,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(
            f"{path}: missing; a report needs a finished run. Run the recipe again: it continues where it stopped"
        ) from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read as JSON ({error}); run the recipe again to rewrite it") from None
    if not isinstance(data, dict):
        raise ReportError(f"{path}: holds a {type(data).__name__}, not an object; run the recipe again to rewrite it")
    return data


def _check_version(path: Path, data: Mapping[str, Any]) -> None:
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ReportError(
            f"{path}: schema_version is {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}; "
            "run the recipe again with this version of haqsearch"
        )


def _layers(policy: Mapping[str, Any]) -> tuple[Layer, ...]:
    costs = {str(row.get("layer")): row for row in policy.get("layer_costs") or [] if isinstance(row, dict)}
    chosen = policy.get("layers")
    chosen = chosen if isinstance(chosen, dict) else {}
    return tuple(_layer(name, entry, costs.get(name, {})) for name, entry in chosen.items())


def _layer(name: str, entry: Any, row: Mapping[str, Any]) -> Layer:
    entry = entry if isinstance(entry, dict) else {}
    known = {key: finite(row.get(key)) for key in METRICS}
    return Layer(
        name=name,
        op=str(row.get("op") or ""),
        in_shape=_shape(row.get("in_shape")),
        weight_shape=_shape(row.get("weight_shape")),
        out_shape=_shape(row.get("out_shape")),
        macs=finite(row.get("macs")),
        pinned=bool(row.get("pinned")),
        bound=str(row.get("bound") or ""),
        weight=Bits.parse(entry.get("weight")),
        activation=Bits.parse(entry.get("activation")),
        costs={key: value for key, value in known.items() if value is not None},
        buys_nothing=_texts(row.get("buys_nothing")),
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(text) for text in value) if isinstance(value, list) else ()


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        return ()
    sizes = [finite(v) for v in value]
    return tuple(int(v) for v in sizes if v is not None) if None not in sizes else ()


def _trials(path: Path) -> tuple[Trial, ...]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; run the recipe again: it continues where it stopped") from None
    except Exception as error:  # pyarrow raises a dozen unrelated kinds for a damaged file
        raise ReportError(f"{path}: cannot be read as Parquet ({error}); run the recipe again to rewrite it") from error
    if missing := {"number", "policy_digest", "feasible"} - set(frame.columns):
        raise ReportError(f"{path}: column {sorted(missing)[0]!r} is missing; run the recipe again to rewrite it")
    metrics = [name for name in METRICS if name in frame.columns]
    return tuple(_trial(row, metrics) for row in frame.to_dict("records"))


def _trial(row: Mapping[Any, Any], metrics: list[str]) -> Trial:
    pruned = ":" in _text(row.get("fidelity"))  # scored on a part of the split: no figure to lay beside the others
    accuracy, loss, kl, logit_mse = (
        None if pruned else finite(row.get(name)) for name in ("accuracy", "loss", "kl", "logit_mse")
    )
    return Trial(
        number=int(finite(row["number"]) or 0),
        source=_text(row.get("source")) or "agent",
        digest=_text(row["policy_digest"]),
        feasible=bool(finite(row["feasible"])),
        violation=finite(row.get("violation")),
        accuracy=accuracy,
        loss=loss,
        kl=kl,
        score=finite(row.get("score")),
        metrics={name: finite(row.get(name)) for name in metrics},
        choices=_choices(row.get("policy")),
        error=_text(row.get("error")),
        logit_mse=logit_mse,
    )


def _pareto_point(point: Mapping[str, Any], number: int) -> Trial:
    metrics = point.get("metrics")
    return Trial(
        number=int(finite(point.get("point")) or number),
        source="pareto",
        digest=_text(point.get("policy_digest")),
        feasible=bool(point.get("feasible", True)),
        violation=finite(point.get("violation")),
        accuracy=finite(point.get("accuracy")),
        loss=finite(point.get("loss")),
        kl=finite(point.get("kl")),
        score=finite(point.get("score")),
        metrics={str(k): finite(v) for k, v in metrics.items()} if isinstance(metrics, dict) else {},
        choices=_choices(point.get("policy")),
        logit_mse=finite(point.get("logit_mse")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _choices(policy: Any) -> tuple[str, ...]:
    """The layers' choices as text (``w4a8``), from the object or its JSON text; empty if it is neither."""
    if isinstance(policy, str):
        try:
            policy = json.loads(policy)
        except ValueError:
            return ()
    if isinstance(policy, dict) and isinstance(policy.get("layers"), dict):
        policy = policy["layers"]
    if not isinstance(policy, dict):
        return ()
    return tuple(f"{c.get('weight')}/{c.get('activation')}" if isinstance(c, dict) else str(c) for c in policy.values())


def _sides(choice: str) -> tuple[str, str]:
    """Weight and activation part of ``w4a8`` or ``int4/uint8``."""
    if match := re.fullmatch(r"w(\d+)a(\d+)", choice):
        return match[1], match[2]
    weight, _, activation = choice.partition("/")
    return weight, activation or weight
