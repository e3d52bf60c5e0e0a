"""haqsearch hw validate: every published figure we hold, predicted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haqsearch.cli.options import AsJson

if TYPE_CHECKING:
    from hwmodels.literature import Row


def command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A device, or a set of figures (default: all).")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write rows, table and scatter plots there.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the plots as a page to point at.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Hold every published figure against the models: error by row and set, rank correlation.

    Exit code 1 if a set misses the target it is held to.
    """
    from hwmodels import validate

    rows = validate.rows(name)
    if out is not None:
        _write(out, rows)
    if html is not None:
        from haqsearch.report.hardware import write_scatter

        write_scatter(html, validate.as_json(rows)["rows"])
    if json:
        from json import dumps

        print(dumps(validate.as_json(rows), indent=2))
    else:
        _print(rows)
    if not all(summary.held for summary in validate.summaries(rows)):
        raise typer.Exit(1)


def _write(folder: Path, rows: list[Row]) -> None:
    from haqsearch.files import write_text_atomic
    from haqsearch.report.scatter import draw
    from hwmodels import validate

    folder.mkdir(parents=True, exist_ok=True)
    records, figures = validate.as_json(rows)["rows"], []
    for metric in dict.fromkeys(row["metric"] for row in records):
        figure = draw([row for row in records if row["metric"] == metric], metric)
        write_text_atomic(folder / f"validation-{metric}.svg", figure)
        figures.append(f"![Predicted against published: {metric}](validation-{metric}.svg)\n")
    write_text_atomic(folder / "validation.csv", validate.as_csv(rows))
    write_text_atomic(folder / "validation.md", "\n".join([validate.as_markdown(rows), *figures]))


def _print(rows: list[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from hwmodels import validate

    console = Console(highlight=False, markup=False)
    table = Table(title="|predicted / published - 1|", box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("set", no_wrap=True)
    for column in ("metric", "rows", "mean", "median", "95 %", "max", "ranks"):
        table.add_column(column, justify="right", no_wrap=True)
    found = validate.summaries(rows)
    shared = {s.set for s in found if sum(o.set == s.set and o.metric == s.metric for o in found) > 1}
    for s in found:
        errors: list[Any] = [f"{value:.1%}" for value in (s.mean, s.median, s.p95, s.max)]
        ranks = "-" if s.rank_correlation is None else f"{s.rank_correlation:.3f}"
        name = f"{s.set} {s.device}" if s.set in shared else s.set
        table.add_row(name, s.metric.rsplit("_", 1)[0], str(s.rows), *errors, ranks)
    console.print(table)
    for s in found:
        for text, held in s.targets.items():
            console.print(f"{'held  ' if held else 'MISSED'} {s.set} {s.device} {s.metric}: {text}", soft_wrap=True)
        for text in s.not_asked:
            console.print(f"not asked {s.set} {s.device} {s.metric}: {text}", soft_wrap=True)
    fitted = {s.set: s.fitted for s in found if s.fitted}
    for name, what in fitted.items():
        console.print(f"fitted {name}: {what}", soft_wrap=True)
