"""Two things timed in turns, so that a busy machine slows both; rows of ratios, and their CSV."""

from __future__ import annotations

import csv
import io
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison. ``ratio``: baseline's time over ours, the median of the turns, with quartiles; seconds are medians.

    Of a layer, ``gmac_per_s`` are its multiply-adds and ``gbyte_per_s`` its packed weights over our seconds, in 1e9.
    """

    case: str
    policy: str
    baseline: str
    threads: int
    ratio: float
    q1: float
    q3: float
    ours_s: float
    baseline_s: float
    note: str = ""
    gmac_per_s: float = 0.0
    gbyte_per_s: float = 0.0

    def text(self) -> str:
        return (
            f"{self.case:32s} {self.policy:8s} {self.baseline:16s} {self.threads} thread{'s'[: self.threads > 1]:1s} "
            f"{self.ratio:6.2f} ({self.q1:.2f} .. {self.q3:.2f})  {1e3 * self.ours_s:9.3f} ms  {self.note}"
            + (f"; {self.gmac_per_s:.0f} GMAC/s" if self.gmac_per_s else "")
        )


Timer = Callable[[], float]
"""Does something once and gives the seconds it took."""


def timer(work: Callable[[], Any]) -> Timer:
    """The wall clock around ``work``."""

    def measured() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measured


def compare(ours: Timer, theirs: Timer, repeats: int) -> dict[str, float]:
    """The figures of a Row: each turn times both, one right after the other, whichever comes first changing."""
    turns = Turns(ours, theirs)
    turns.take(repeats)
    return turns.figures()


class Turns:
    """A comparison that can be taken up again: what a machine does for a few seconds then weighs less."""

    def __init__(self, ours: Timer, theirs: Timer) -> None:
        self._timers = {"ours": ours, "theirs": theirs}
        self._times: dict[str, list[float]] = {"ours": [], "theirs": []}
        ours(), theirs()  # first calls allocate and choose algorithms

    def take(self, repeats: int) -> None:
        """Time both ``repeats`` times more."""
        for _ in range(repeats):
            pair = list(self._timers.items())
            for name, measured in pair if len(self._times["ours"]) % 2 else reversed(pair):
                self._times[name].append(measured())

    def figures(self) -> dict[str, float]:
        """Of all turns so far, as ``compare``."""
        import numpy as np

        ratios = np.array(self._times["theirs"]) / np.array(self._times["ours"])
        q1, ratio, q3 = (round(float(v), 3) for v in np.quantile(ratios, [0.25, 0.5, 0.75]))
        medians = {f"{name}_s": float(np.median(values)) for name, values in self._times.items()}
        return {"ratio": ratio, "q1": q1, "q3": q3, "ours_s": medians["ours_s"], "baseline_s": medians["theirs_s"]}


def report(
    rows: Sequence[Row], what: str, folder: Path | None, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a bench of rows gives: the rows as objects, where and with what they were measured, lines for people."""
    from haqsearch.cli.outcome import environment
    from haqsearch.files import write_json_atomic, write_text_atomic
    from haqsearch.kernels import native

    machine = {**environment(), "isa": native.isa() or native.isas()[0]}
    lines = [row.text() for row in rows]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{what}-{_slug(machine['processor'])}-{machine['isa']}-torch{machine['torch'].split('+')[0]}.csv"
        write_text_atomic(folder / name, _csv(rows, machine))
        if more:
            write_json_atomic((folder / name).with_suffix(".json"), {**more, "environment": machine})
        from haqsearch.cli.bench.summary import write_summary

        write_summary(folder)
        lines.append(f"written: {folder / name}")
    return {"rows": [asdict(row) for row in rows], "environment": machine, **(more or {}), "text": lines}


def _csv(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    text = io.StringIO()
    columns = ("commit", "processor", "isa", "torch")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Row.__dataclass_fields__, *columns, "python"])
    for row in rows:
        values = [f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()]
        writer.writerow([*values, *(machine[c] for c in columns), platform.python_version()])
    return text.getvalue()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
