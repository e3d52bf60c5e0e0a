"""haqsearch run: search, fine-tune, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from haqsearch.cli.options import DataRoot, Overrides, RecipePath, assemble, results_folder


def command(
    recipe: RecipePath,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder (default: results/NAME).")
    ] = None,
    set_: Overrides = None,
    workers: Annotated[int, typer.Option("--workers", min=0, metavar="N", help="Ray workers; 0: in this process.")] = 0,
    data_root: DataRoot = None,
) -> None:
    """Search the best policy inside the budget. Killed at any moment, the same command goes on."""
    from haqsearch.cli.pipeline import Run
    from haqsearch.cli.progress import Progress
    from haqsearch.search.storage import exclusive

    folder = out.resolve() if out and not out.name else out or results_folder(recipe)  # the study has the folder's name
    assembly = assemble(recipe, set_, data_root, folder)
    with Progress(assembly.recipe.max_evaluations) as progress:
        run = Run(assembly, folder, workers, progress.say, progress.on_event)
        assembly.check()
        with exclusive(folder):
            summary = run()
    _print(summary, folder)
    if not summary["feasible"]:
        raise typer.Exit(1)


def _uniform(uniform: dict[str, Any]) -> str:
    finished = uniform["finished_accuracy"]
    return f"{uniform['policy']} {uniform['accuracy'] if finished is None else finished:.2%}"


def _ladder(rungs: list[dict[str, Any]]) -> str:
    return "; ".join(
        f"{rung['samples'] or 'all'} samples: {rung['scored']} scored, {rung['seconds']:.1f} s"
        + (f", {rung['pruned']} pruned" if rung["samples"] else "")
        + (f", rank correlation {rung['correlation']:.2f}" if rung.get("correlation") is not None else "")
        + ("" if rung.get("kept", True) else ", dropped")
        for rung in rungs
    )


def _front(front: dict[str, Any], int8: dict[str, float]) -> str:
    ends = ", ".join(
        f"{name} {value:.4g}" + (f" ({value / int8[name]:.3f} of int8)" if name in int8 else "")
        for name, value in front["reference"].items()
        if value is not None
    )
    return (
        f"front: {front['front']} policies that trade the objective for {', '.join(front['metrics'])}; hypervolume "
        f"{front['hypervolume']:.4f} of the box up to {ends}; any point: haqsearch export --point K"
    )


def _print(summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\naccuracy [bold]{summary['accuracy']:.2%}[/bold] on the report split; float {summary['float_accuracy']:.2%}"
        + (f", 8 bits {summary['int8_accuracy']:.2%}" if summary["int8_accuracy"] is not None else "")
        + (f", uniform {_uniform(summary['uniform'])}" if summary["uniform"] else "")
    )
    for budget in summary["budget"]:
        met = "met" if budget["met"] else "[red]exceeded[/red]"
        share = budget["value"] / summary["int8_metrics"][budget["metric"]]
        console.print(f"{budget['metric']} {budget['value']:.6g} ({share:.3f} of int8); budget {budget['text']}: {met}")
    if front := summary.get("tradeoff"):
        console.print(_front(front, summary["int8_metrics"]))
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["seconds"].items())
    pruned = f" ({summary['pruned_evaluations']} pruned)" if summary["pruned_evaluations"] else ""
    console.print(f"{summary['evaluations']} evaluations{pruned}; {times}")
    if summary["ladder"]:
        console.print(f"ladder: {_ladder(summary['ladder']['rungs'])}")
    console.print(f"report: {folder / 'report.html'}")
