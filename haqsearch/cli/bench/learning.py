"""haqsearch bench learning: does an agent learn? The scores of what it proposes, early and late, beside those of chance.

Reads the searches of ``haqsearch bench search`` on one ``--out``. What an agent has found so far rises for any agent; what it
proposes gets better only if it learns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer

from haqsearch.cli.bench.search import WORK

TABLE = "learning.md"
CSV = "learning.csv"


@dataclass(frozen=True)
class Window:
    """Consecutive proposals of one search's agent, the openings of the search aside.

    first, last   numbers of the first and last of them among the agent's own, from 1
    mean, best    of their scores: the recipe's objective on the search split, large is good
    """

    recipe: str
    agent: str
    evaluations: int
    seed: int
    first: int
    last: int
    mean: float
    best: float


def command(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of haqsearch bench search.")],
    window: Annotated[int, typer.Option("--window", min=2, help="Proposals that are averaged.")] = 50,
) -> None:
    """Mean score of what agents propose, in windows over a search: learning.csv and a table of first and last, learning.md."""
    from haqsearch.errors import DataError
    from haqsearch.files import write_text_atomic

    found = [part for folder in sorted((out / WORK).glob("*/*-*-*")) for part in windows_of(folder, window)]
    if not found:
        raise DataError(
            f"{out}: no searches of {window} proposals under {out / WORK}; haqsearch bench search makes them"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Window)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(one) for one in found)
    write_text_atomic(out / CSV, text.getvalue())
    write_text_atomic(out / TABLE, table(found))
    print(out / TABLE)


def windows_of(folder: Path, size: int) -> list[Window]:
    """Of the search in ``folder`` (RECIPE/AGENT-EVALUATIONS-SEED); the first begins and the last ends with it."""
    from haqsearch.search.records import read_records
    from haqsearch.search.storage import JOURNAL, load_study

    agent, evaluations, seed = folder.name.rsplit("-", 2)
    if not (folder / JOURNAL).is_file() or not (evaluations.isdecimal() and seed.isdecimal()):
        return []
    records = read_records(load_study(folder, "search"))
    scores = [r.score for r in records if r.score is not None and r.source not in {"uniform", "warm_start"}]
    starts = [*range(0, len(scores) - size, size), len(scores) - size] if len(scores) >= size else []
    parts = [(start, start + size) for start in starts]
    return [
        Window(folder.parent.name, agent, int(evaluations), int(seed), start + 1, end,
               round(fmean(scores[start:end]), 8), max(scores[start:end]))
        for start, end in parts
    ]  # fmt: skip


def table(found: Sequence[Window]) -> str:
    """One line a recipe and agent: means over the seeds, plus or minus their standard deviation."""
    lines = [
        "| recipe | agent | seeds | first window | last window | risen by |",
        "|---|---|---|---|---|---|",
    ]
    for recipe, agent in sorted({(one.recipe, one.agent) for one in found}):
        mine = [one for one in found if (one.recipe, one.agent) == (recipe, agent)]
        runs = sorted({(one.evaluations, one.seed) for one in mine})
        searches = [[one for one in mine if (one.evaluations, one.seed) == run] for run in runs]
        first, last = [part[0].mean for part in searches], [part[-1].mean for part in searches]
        risen = [end - start for start, end in zip(first, last, strict=True)]
        lines.append(
            f"| {recipe} | {agent} | {len(searches)} | {_spread(first)} | {_spread(last)} | {_spread(risen, sign='+')} |"
        )
    one = found[0]
    return "\n".join(
        [
            f"Mean score of {one.last - one.first + 1} consecutive proposals, the agent's first and last: made by "
            "`haqsearch bench learning` from the searches of `haqsearch bench search`.",
            "",
            *lines,
            "",
        ]
    )


def _spread(values: Sequence[float], sign: str = "") -> str:
    mean = f"{fmean(values):{sign}.4f}"
    return f"{mean} ± {stdev(values):.4f}" if len(values) > 1 else mean
