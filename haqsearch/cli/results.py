"""haqsearch results: the table of finished runs, as it stands in the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_COLUMNS = ("run", "budget", "float", "8 bits", "best uniform", "haqsearch", "cost / 8 bits", "evaluations", "minutes")
_NOTE = (
    "Accuracies are the integer program's, on data the search never saw. Best uniform: the best single pair of widths "
    "inside the budget, finished - rounded, fine-tuned - as the search's own policies are (as the search scored it)."
)


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of run folders.")] = Path("results"),
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Put the table between the results marks of this Markdown file."),
    ] = None,
) -> None:
    """Table of every finished run under DIR, from their summary.json: accuracy on the report split, costs, time."""
    text = table(folder)
    if write is None:
        print(text)
        return
    write_between(write, BEGIN, END, text)


def write_between(file: Path, begin: str, end: str, text: str) -> None:
    """Put ``text`` between the lines ``begin`` and ``end`` of ``file``. Raises DataError if they are not there once each."""
    from haqsearch.errors import DataError
    from haqsearch.files import write_text_atomic

    page = file.read_text(encoding="utf-8") if file.is_file() else ""
    if page.count(begin) != 1 or page.count(end) != 1:
        raise DataError(f"{file}: needs one line {begin} and one line {end} around the place of the table")
    before, after = page.split(begin)[0], page.split(end)[1]
    write_text_atomic(file, f"{before}{begin}\n{text}\n{end}{after}")


def table(folder: Path) -> str:
    """Markdown table of the runs in ``folder``, by name, with the versions and machine each was made on."""
    from haqsearch.errors import DataError

    rows: list[str] = []
    notes: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/summary.json")):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            rows.append(_row(summary))
            environment = json.loads((path.parent / "environment.json").read_text(encoding="utf-8"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path.parent}: not the folder of a finished run ({error})") from None
        machine = f"{environment['processor']}, {environment['cores']} cores"
        versions = f"torch {environment['torch']}, commit {environment['commit']}"
        notes.setdefault(f"{machine}; {versions}", []).append(path.parent.name)
    if not rows:
        raise DataError(f"{folder}: no finished run in it; haqsearch run writes one")
    made = "; ".join(f"{', '.join(names)} on {where}" for where, names in notes.items())
    head = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    return "\n".join([*head, *rows, "", f"{_NOTE} Made from the recipes in `searches/`: {made}."])


def _uniform(uniform: dict[str, Any]) -> str:
    finished, searched = uniform["finished_accuracy"], f"{uniform['accuracy']:.2%}"
    return f"{uniform['policy']}: " + (searched if finished is None else f"{finished:.2%} ({searched})")


def _tradeoff(front: dict[str, Any] | None) -> list[str]:
    if not front:
        return []
    metrics = ", ".join(f"`{metric}`" for metric in front["metrics"])
    return [f"a front against {metrics}: {front['front']} policies, hypervolume {front['hypervolume']:.3f}"]


def _row(summary: dict[str, Any]) -> str:
    uniform = summary["uniform"]
    shares = [f"{b['value'] / summary['int8_metrics'][b['metric']]:.3f} {b['metric']}" for b in summary["budget"]]
    cells = [
        f"{summary['model']} on {summary['hardware']['name']}, {summary['agent']}",
        "; ".join([f"`{b['text']}`" for b in summary["budget"]] + _tradeoff(summary.get("tradeoff"))),
        f"{summary['float_accuracy']:.2%}",
        "" if summary["int8_accuracy"] is None else f"{summary['int8_accuracy']:.2%}",
        _uniform(uniform) if uniform else "",
        f"**{summary['accuracy']:.2%}**",
        "; ".join(shares),
        f"{summary['evaluations']}",
        f"{sum(summary['seconds'].values()) / 60:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"
