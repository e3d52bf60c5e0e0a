"""haqsearch bench search: agents x recipes x seeds, with equal numbers of evaluations, through the real loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import DataRoot, Overrides

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly
    from haqsearch.cli.bench.cells import Cell, Row
    from haqsearch.cli.bench.stages import Stage

RESULTS = Path("results/search")
WORK = "runs"  # what is large, or can be made again: studies, prepared weights, scores
SCHEMA_VERSION = 1


def command(
    recipes: Annotated[
        Optional[list[Path]],  # noqa: UP045 - typer reads the annotation itself
        typer.Argument(metavar="RECIPE...", help="Recipes: TOML files, see searches/compare/.", show_default=False),
    ] = None,
    agents: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--agent", metavar="A", help="An agent, as in tpe or 'ddpg(warmup=40)'; once for each."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 .. N - 1.")] = 3,
    evaluations: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--evaluations", min=1, help="Evaluations of every search; else the recipe's max_evaluations."),
    ] = None,
    at: Annotated[
        str, typer.Option("--at", metavar="N,..", help="The best after so many is scored on the report split, too.")
    ] = "60,100",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the tables.")] = RESULTS,
    page_only: Annotated[bool, typer.Option("--page-only", help="Search nothing: make README.md anew.")] = False,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Agents x recipes x seeds, compared: CSV files, tables, curves. A killed one goes on; two on one --out share the work."""
    from haqsearch.cli.bench.cells import Cell, Entrant
    from haqsearch.cli.bench.search_page import write_page
    from haqsearch.cli.bench.stages import make_stages
    from haqsearch.errors import RecipeError

    if page_only:
        write_page(out)
        return
    if not recipes or not agents:
        raise RecipeError("bench search: name recipes, and agents with --agent")
    counts = _counts(at)
    entrants = [Entrant.parse(text) for text in agents]
    single_thread()
    stages = make_stages(recipes, set_ or (), data_root, out / WORK, say)
    for stage in stages:
        for entrant in entrants:  # names and options are wrong now, or never
            _ = Cell(stage, entrant, 0, 1).agent
    # Seeds come last: what is interrupted has all agents on all recipes at the first of them.
    cells = [
        Cell(stage, entrant, seed, evaluations or stage.assembly.recipe.max_evaluations)
        for seed in range(seeds)
        for stage in stages
        for entrant in entrants
    ]
    for cell, rows in finished(cells, counts):
        record(out, cell.stage, rows)
    print(out / "README.md")


def finished(cells: Sequence[Cell], at: Sequence[int]) -> Iterator[tuple[Cell, list[Row]]]:
    """Every cell as it ends, whichever process searched it; those that another is at come last."""
    from haqsearch.cli.bench.cells import Busy
    from haqsearch.cli.outcome import environment

    commit = environment()["commit"]
    left, total = list(cells), len(cells)
    while left:
        busy = []
        for cell in left:
            start = time.perf_counter()
            try:
                rows = cell.run(at, commit)
            except Busy:
                busy.append(cell)
                continue
            best = f"{rows[-1].score:.5g}" if rows else "nothing inside the budget"
            say(f"{cell}: {best} ({time.perf_counter() - start:.0f} s)")
            yield cell, rows
        if len(busy) == len(left):
            say(f"{len(busy)} of {total} searches are another process's; waiting for them")
            time.sleep(5)
        left = busy


def record(out: Path, stage: Stage, rows: Sequence[Row]) -> None:
    """Put a cell's rows into its recipe's CSV, in place of what it had there, and make the page."""
    from haqsearch.cli.bench.cells import read_rows, write_rows
    from haqsearch.cli.bench.search_page import write_page
    from haqsearch.cli.bench.stages import waiting
    from haqsearch.files import write_json_atomic, write_text_atomic

    path = out / f"{stage.name}.csv"
    with waiting(out / WORK / "tables.lock"):
        new = {row.cell for row in rows}
        kept = [row for row in read_rows(path) if row.cell not in new]
        write_json_atomic(path.with_suffix(".json"), about(stage))
        write_text_atomic(path, write_rows([*kept, *rows]))
        write_page(out)


def about(stage: Stage) -> dict[str, Any]:
    """What the tables say of a recipe, in base units, with versions and machine."""
    from haqsearch.cli.outcome import environment

    a = stage.assembly
    objective = a.problem.objective
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": stage.name,
        "model": a.model_name,
        "data": a.recipe.data,
        "hardware": a.device.name,
        "budget": list(a.recipe.budget),
        "limits": {limit.metric: limit.value for limit in a.limits},
        "objective": objective.name,
        "objective_sign": objective.sign,
        "ptq": " + ".join(a.recipe.ptq.steps) or a.recipe.ptq.preset,
        "variables": len(a.problem.free),
        "space": float(a.space.size),
        "sensitivity_evaluations": sensitivity_evaluations(a),
        "splits": {name: len(getattr(a.splits, name)[0]) for name in ("calibrate", "search", "report")},
        "float_accuracy": stage.scores.evaluator.float_scores("report").accuracy,
        "environment": environment(),
    }


def sensitivity_evaluations(assembly: Assembly) -> int:
    """How many policies were scored to measure the sensitivity table that some agents add up; 0 if none asked for it."""
    file = assembly.sensitivities.file
    if assembly.sensitivities.calculated(assembly.sensitivity_measure):
        return 0
    if file is None or not file.is_file():
        return 0
    return sum(len(scores) for scores in json.loads(file.read_text(encoding="utf-8")).values())


def single_thread() -> None:
    """One thread, unless the user says otherwise: a second process does more for the second core than a second thread."""
    import os

    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def _counts(text: str) -> list[int]:
    from haqsearch.errors import RecipeError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"--at {text!r}: give numbers of evaluations, as in 60,100")
    return [int(part) for part in parts]
