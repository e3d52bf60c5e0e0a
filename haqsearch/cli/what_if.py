"""haqsearch what-if: the best policy inside another budget, from what a finished run evaluated. Nothing is evaluated anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import AsJson, DataRoot, RunRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from haqsearch.search.records import Record
    from haqsearch.spec import Limit, Policy


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    budget: Annotated[
        list[str],
        typer.Argument(
            metavar="LIMIT...", help='Limits, as in a recipe: "latency_s <= 0.45 * int8".', show_default=False
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation itself
        typer.Option("--out", metavar="FILE", help="Write the answer there, as a policy file.", show_default=False),
    ] = None,
    recipe: RunRecipe = None,
    data_root: DataRoot = None,
    json: AsJson = False,
) -> None:
    """Answer "what if the budget were x" from a run's trials: the best policy evaluated, marked as that."""
    from haqsearch.cli.deliver import read_json
    from haqsearch.search.records import read_trials
    from haqsearch.spec import Budget

    budgets = [Budget.parse(text) for text in budget]
    summary = read_json(run / "summary.json")
    limits = tuple(one.resolve(summary["int8_metrics"]) for one in budgets)
    answer = evaluated(read_trials(run / "trials.parquet"), limits, str(run))
    if answer.best is None:
        _check_reachable(run, recipe, data_root, limits)
    found = {"budget": [{"text": one.text, "metric": one.metric, "limit": one.value} for one in limits],
             "evaluated": _content(answer.best, run), "nearest": _content(answer.nearest, run)}  # fmt: skip
    if json:
        from json import dumps

        print(dumps(found, indent=2))
    else:
        _print(found, limits, summary["int8_metrics"])
    if out is not None and answer.best is not None:
        _write(out, answer.best.policy, run)
        if not json:
            print(f"{out}: policy {answer.best.policy.digest}")
    if answer.best is None:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Answer:
    """The best record inside the limits, or None and the one that exceeds them least."""

    best: Record | None
    nearest: Record | None


def evaluated(records: Sequence[Record], limits: tuple[Limit, ...], where: str) -> Answer:
    """The best of ``records`` under ``limits`` in place of the run's own, those infeasible there included.

    Raises SearchError if there is nothing scored to choose from, BudgetError if a record lacks a limited metric.
    """
    from haqsearch.errors import BudgetError, SearchError
    from haqsearch.search.records import best_of
    from haqsearch.spec import violation

    scored = [r for r in records if r.score is not None]
    if not scored:
        raise SearchError(f"{where}: no policy was scored in this run, so there is nothing to answer from")
    for limit in limits:
        if any(limit.metric not in r.evaluation.metrics for r in scored):
            raise BudgetError(f"budget {limit.text!r}: {where} did not record {limit.metric} of its policies")
    judged = [
        replace(r, evaluation=replace(r.evaluation, violation=violation(r.evaluation.metrics, limits))) for r in scored
    ]
    best = best_of(judged)
    return Answer(best, None if best else min(judged, key=lambda r: (r.evaluation.violation, r.number)))


def _check_reachable(run: Path, recipe: Path | None, data_root: Path | None, limits: tuple[Limit, ...]) -> None:
    """BudgetError if no policy of the run's search space can be inside ``limits``; says what holds it up."""
    from haqsearch.cli.deliver import reopen

    a = reopen(run, recipe, data_root)
    a.meter.check_reachable(a.space, limits)


def _content(record: Record | None, run: Path) -> dict[str, Any] | None:
    from haqsearch.cli.deliver import read_json
    from haqsearch.search.records import policy_text

    if record is None:
        return None
    points = read_json(run / "pareto.json").get("points") or []
    digest = record.policy.digest
    point = next((i for i, p in enumerate(points, start=1) if p.get("policy_digest") == digest), None)
    e = record.evaluation
    return {"policy_digest": digest, "trial": record.number, "source": record.source, "point": point,
            "fidelity": e.fidelity, "score": record.score, "accuracy": e.accuracy, "loss": e.loss, "kl": e.kl,
            "violation": e.violation, "metrics": dict(e.metrics), "policy": policy_text(record.policy)}  # fmt: skip


def _print(found: Mapping[str, Any], limits: tuple[Limit, ...], int8: Mapping[str, float]) -> None:
    from hwmodels.meter import quantity

    best, nearest = found["evaluated"], found["nearest"]
    if best:
        print(f"evaluated: trial {best['trial']} ({best['source']}), {_scores(best)}")
        print(f"  policy {best['policy_digest']}" + (_how_to_export(best["point"])))
        shown = best
    else:
        print("evaluated: no policy of this run is inside, and nothing shows that none can be: search with this budget")
        print(f"  nearest: trial {nearest['trial']}, {nearest['violation']:.1%} over, {_scores(nearest)}")
        shown = nearest
    for limit in limits:
        value = shown["metrics"][limit.metric]
        share = f"{value / int8[limit.metric]:.3f} of int8" if int8[limit.metric] else ""
        print(
            f"  {limit.metric} {quantity(limit.metric, value)} ({share}); limit {quantity(limit.metric, limit.value)}"
        )


def _how_to_export(point: int | None) -> str:
    return f", point {point} of pareto.json: haqsearch export RUN --point {point}" if point else ""


def _scores(found: Mapping[str, Any]) -> str:
    shown = [("accuracy", "{:.2%}"), ("loss", "{:.4f}"), ("kl", "{:.4f}")]
    scores = [
        f"{'KL' if name == 'kl' else name} {form.format(found[name])}"
        for name, form in shown
        if found[name] is not None
    ]
    return f"{', '.join(scores)} on the search split ({found['fidelity']})"


def _write(out: Path, policy: Policy, run: Path) -> None:
    """A policy file that says, as the run's own does, for which weights and device it was found."""
    from haqsearch.cli.deliver import read_json
    from haqsearch.files import write_json_atomic

    kept = read_json(run / "policy.json")
    origin = {key: kept[key] for key in ("model", "model_digest", "weights_digest", "hardware") if key in kept}
    write_json_atomic(out, policy.to_json(**origin))
