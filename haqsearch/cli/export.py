"""haqsearch export: a finished run's integer program, or another point of its front, for other tools to run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import DataRoot, RunRecipe

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly
    from haqsearch.cli.finish import Candidate
    from haqsearch.spec import Policy


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation itself
        typer.Option(
            "--out", metavar="PATH", help="File to write; of a point, the folder (RUN/point-K).", show_default=False
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="onnx, or onnx-integer: no floats inside.")
    ] = "onnx",
    point: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--point", metavar="K", min=1, help="Point of pareto.json, instead of the chosen policy."),
    ] = None,
    as_scored: Annotated[
        bool, typer.Option("--as-scored", help="The point as the search scored it: no fine-tuning, no other rounding.")
    ] = False,
    recipe: RunRecipe = None,
    data_root: DataRoot = None,
) -> None:
    """Export the chosen policy of a finished run, or any point of its front: without a new search."""
    if point is not None:
        _export_point(run, point, out or run / f"point-{point}", format, as_scored, recipe, data_root)
    else:
        _export_chosen(run, out, format)


def _export_chosen(run: Path, out: Path | None, format: str) -> None:
    from safetensors import safe_open

    from haqsearch.errors import ExportError
    from haqsearch.export import exporter
    from haqsearch.runtime import load_program

    write = exporter(format)
    if not run.is_dir():
        raise ExportError(f"{run}: no such run folder; haqsearch run writes one")
    if out is None:
        raise ExportError("where to? Give a file with --out FILE, or a point of the front with --point K")
    program = load_program(run / "model.safetensors")
    with safe_open(str(run / "model.safetensors"), framework="pt") as file:
        provenance = {key: text for key, text in sorted(file.metadata().items()) if key.startswith("haqsearch.")}
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent}: no such folder to write {out.name} into")
    write(program, out, provenance)
    print(f"{out}: {out.stat().st_size:,} bytes")


def _export_point(
    run: Path, number: int, out: Path, format: str, as_scored: bool, recipe: Path | None, data_root: Path | None
) -> None:
    from haqsearch.cli.deliver import read_json, reopen, write_program
    from haqsearch.errors import ExportError
    from haqsearch.export import exporter
    from haqsearch.search.records import read_policy

    exporter(format)  # an unknown format is said before the work is done
    front = read_json(run / "pareto.json")
    points: list[dict[str, Any]] = front.get("points") or []
    if number > len(points):
        there = f"points 1 to {len(points)}" if points else "no point: no policy was evaluated inside the budget"
        raise ExportError(f"{run / 'pareto.json'} has {there}; there is no point {number}")
    a, point = reopen(run, recipe, data_root), points[number - 1]
    policy = read_policy(point["policy"]).check(a.prepared.spec, str(run / "pareto.json"))
    _check_weights(run, a)
    print(f"point {number} of {len(points)}: policy {policy.digest}", flush=True)
    best = _scored(a, policy) if as_scored else _finished(a, run, policy)
    scores = a.evaluator.score(best.program, "report")
    out.mkdir(parents=True, exist_ok=True)
    notes = write_program(a, best, out, format)
    _print(a, point, best)
    print(f"report split: accuracy {scores.accuracy:.2%}, loss {scores.loss:.4f}, KL {scores.kl:.4f}", end="")
    print(f" (float {a.evaluator.float_scores('report').accuracy:.2%})")
    for note in notes:
        print(note)
    print(f"{out}: {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))}")


def _check_weights(run: Path, a: Assembly) -> None:
    """ExportError if the network is not the one that the run was about: its scores would not be the recorded ones."""
    from haqsearch.cli.deliver import read_json
    from haqsearch.errors import ExportError

    recorded = read_json(run / "policy.json").get("weights_digest")
    if recorded != a.weights_digest:
        raise ExportError(
            f"{run}: the run was of other weights (digest {recorded}, these are {a.weights_digest}); bring back the weights "
            "and the data of the run, or search again"
        )


def _scored(a: Assembly, policy: Policy) -> Candidate:
    """The very program that the search scored."""
    from haqsearch.cli.finish import Candidate

    start = time.perf_counter()
    program = a.prepared.lower(policy)
    scores = a.evaluator.score(program, "search")
    seconds = time.perf_counter() - start
    return Candidate(policy, program, a.evaluator.evaluation(policy, scores, "ptq", seconds, a.recipe.seed))


def _finished(a: Assembly, run: Path, policy: Policy) -> Candidate:
    """The best that the recipe's finish makes of it, chosen on the search split as the run chose its winner."""
    from haqsearch.cli.finish import Finisher
    from haqsearch.spec import OBJECTIVES

    finisher = Finisher(a, run, lambda text: print(text, flush=True), lambda: None)
    objective = OBJECTIVES[a.recipe.objective]
    return max(finisher.finished(policy, "the point"), key=lambda candidate: objective.score(candidate.evaluation))


def _print(a: Assembly, point: dict[str, Any], best: Candidate) -> None:
    """What the search recorded of the point and what it is now, on the search split; its costs."""
    from hwmodels.meter import quantity

    def scores(found: dict[str, Any]) -> str:
        return f"accuracy {found['accuracy']:.2%}, loss {found['loss']:.4f}, KL {found['kl']:.4f}"

    e = best.evaluation
    print(f"search split, as evaluated in the search ({point.get('fidelity', 'ptq')}): {scores(point)}")
    print(f"search split, exported ({e.fidelity}): {scores({'accuracy': e.accuracy, 'loss': e.loss, 'kl': e.kl})}")
    int8 = a.meter.int8()
    for metric in a.problem.counted or a.meter.metrics:
        value = a.meter.costs(best.policy)[metric]
        print(f"{metric}: {quantity(metric, value)} ({value / int8[metric]:.3f} of int8)")
