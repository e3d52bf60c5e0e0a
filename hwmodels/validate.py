"""Every published figure we hold, predicted: errors per row and per set, rank correlation, and whether the targets are met."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np

from haqsearch.errors import HardwareError
from haqsearch.spec import Choice, Format
from hwmodels import here, literature, networks, simulated
from hwmodels.literature import Row
from hwmodels.profile import load

SETS: dict[str, Callable[[], list[Row]]] = {**simulated.SETS, **literature.SETS, **here.SETS}
FITTED = {**simulated.FITTED, **literature.FITTED, **here.FITTED}


@dataclass(frozen=True)
class Target:
    """A bound on the relative errors of a set: of their ``statistic``, for ``metric``; 0.02 is 2 %.

    A rank correlation is bounded from below, and only asked of figures that are ``apart``: largest over smallest, less one.
    Closer together, their order is that of the noise they were measured in.
    """

    set: str
    statistic: str
    limit: float
    metric: str = "latency_s"
    apart: float = 0.0

    def __str__(self) -> str:
        if self.statistic == "rank_correlation":
            return f"{self.statistic} >= {self.limit:g}"
        return f"{self.statistic} <= {100 * self.limit:g}%"

    def held(self, value: float | None) -> bool:
        """Whether the statistic's ``value`` is within the bound."""
        if value is None:
            return False
        return value >= self.limit if self.statistic == "rank_correlation" else value <= self.limit


TARGETS = (
    Target("haq_table_sums", "max", 0.015),
    Target("haq_table_cells", "median", 0.015),
    Target("haq_table_cells", "p95", 0.10),
    Target("haq_paper", "max", 0.04),
    Target("bitfusion_8x8", "mean", 0.02),
    Target("bitfusion_8x8", "max", 0.25),
    Target("bitfusion_8x8", "mean", 0.10, "energy_j"),
    Target("bitfusion_16x32", "mean", 0.02),
    Target("bitfusion_16x32", "max", 0.25),
    Target("bitfusion_16x32", "mean", 0.10, "energy_j"),
    Target("stm32h7_convolutions", "max", 0.08),
    Target("stm32h7_depthwise", "max", 0.02),
    Target("t4", "max", 1e-9),
    Target("mlperf_tiny", "max", 0.30),
    Target("mlperf_tiny", "max", 0.30, "energy_j"),
    *(Target(name, "median", 0.15) for name in here.CELLS),
    *(Target(name, "max", 0.10) for name in here.WHOLE),
    *(Target(name, "rank_correlation", 0.9, apart=0.1) for name in here.WHOLE),
)


@dataclass(frozen=True)
class Summary:
    """Relative errors |predicted / published - 1| of the rows of one set, device and metric.

    bias              median of predicted / published - 1, with its sign
    rank_correlation  Spearman's, between published and predicted; None where either is constant or there are fewer than 3
    targets           each as text, and whether it is held
    fitted            which of the device's numbers were fitted to these figures; empty: none
    """

    set: str
    device: str
    metric: str
    rows: int
    mean: float
    median: float
    p95: float
    max: float
    bias: float
    worst: str
    rank_correlation: float | None
    targets: dict[str, bool]
    not_asked: list[str]
    fitted: str

    @property
    def held(self) -> bool:
        """Whether every target is."""
        return all(self.targets.values())


def rows(name: str = "") -> list[Row]:
    """Published and predicted figures of the set or the device called ``name``, or all of them.

    Raises HardwareError if there is no such set and no published figure of such a device.
    """
    if name in SETS:
        return list(_made(name))
    every = [row for known in SETS for row in _made(known)]
    found = [row for row in every if name in ("", row.device)]
    if not found:
        known = sorted({*SETS, *(row.device for row in every)})
        near = get_close_matches(name, known, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise HardwareError(f"no published figure of {name!r}; {hint}")
    return found


@cache
def _made(name: str) -> tuple[Row, ...]:
    return tuple(SETS[name]())


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One summary for each set, device and metric among ``rows``, in their order."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.set, row.device, row.metric), []).append(row)
    return [_summary(*key, group) for key, group in groups.items()]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _summary(name: str, device: str, metric: str, rows: list[Row]) -> Summary:
    signed = np.array([row.error for row in rows])
    size = np.abs(signed)
    statistics = {
        "mean": float(size.mean()),
        "median": float(np.median(size)),
        "p95": float(np.quantile(size, 0.95)),
        "max": float(size.max()),
    }
    ranks = spearman([row.published for row in rows], [row.predicted for row in rows])
    reached = {**statistics, "rank_correlation": ranks}
    apart = max(row.published for row in rows) / min(row.published for row in rows) - 1
    of_set = [t for t in TARGETS if (t.set, t.metric) == (name, metric)]
    targets = {str(t): t.held(reached[t.statistic]) for t in of_set if apart >= t.apart}
    not_asked = [
        f"{t}: it is {_number(reached[t.statistic])}, of figures within {100 * apart:.1f}% of one another"
        for t in of_set
        if apart < t.apart
    ]
    worst = rows[int(size.argmax())].case
    return Summary(
        name,
        device,
        metric,
        len(rows),
        **statistics,
        bias=float(np.median(signed)),
        worst=worst,
        rank_correlation=ranks,
        targets=targets,
        not_asked=not_asked,
        fitted=FITTED.get(name, ""),
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1], equal values sharing their mean rank; None where it means nothing."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def speed(policies: int = 1_000_000) -> dict[str, float]:
    """Seconds that building the cost table of MobileNetV2 takes (bitfusion, widths 1 to 8, 53 layers), and those of scoring
    random ``policies`` with it."""
    model, device = networks.mobilenet_v2(), load("bitfusion")
    choices = [Choice(Format("int", w), Format("uint", a)) for w in range(1, 9) for a in range(1, 9)]
    start = perf_counter()
    table = device.table(model, choices)
    built = perf_counter()
    columns = np.random.default_rng(0).integers(len(choices), size=(policies, len(table.layers)), dtype=np.intp)
    begun = perf_counter()
    table.totals(columns, ("latency_s",))
    return {"table_s": built - start, "policies": float(policies), "policies_s": perf_counter() - begun}


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Summaries and rows as plain data, and how long the cost table takes here."""
    found = summaries(rows)
    return {
        "held": all(summary.held for summary in found),
        "speed": speed(),
        "sets": [asdict(summary) for summary in found],
        "rows": [{**asdict(row), "error": row.error} for row in rows],
    }


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row, errors included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["set", "device", "case", "metric", "published", "predicted", "error"])
    for r in rows:
        numbers = [f"{r.published:.6g}", f"{r.predicted:.6g}", f"{r.error:.5f}"]
        writer.writerow([r.set, r.device, r.case, r.metric, *numbers])
    return out.getvalue()


def as_markdown(rows: Sequence[Row]) -> str:
    """A table of the summaries."""
    lines = [
        "| set | device | metric | rows | mean | median | 95 % | max | bias | rank correlation | targets | fitted to it |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries(rows):
        ranks = "-" if s.rank_correlation is None else f"{s.rank_correlation:.3f}"
        asked = [f"{text}: {'held' if held else '**missed**'}" for text, held in s.targets.items()]
        targets = ", ".join(asked + [f"not asked: {text}" for text in s.not_asked]) or "-"
        errors = " | ".join(f"{value:.2%}" for value in (s.mean, s.median, s.p95, s.max))
        cells = [s.set, s.device, s.metric, str(s.rows), errors, f"{s.bias:+.2%}", ranks, targets, s.fitted or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    sources: dict[str, list[str]] = {}
    for row in rows:
        general = row.source.partition(" (hwmodels/")[0]  # without the line of a table
        sources.setdefault(row.set, []).append(general)
    said = [f"- {name}: {'; '.join(dict.fromkeys(texts))}" for name, texts in sources.items()]
    return "\n".join([*lines, "", "Relative errors |predicted / published - 1|. Sources:", "", *said, ""])
