"""haqsearch what-if: the best policy inside another budget, from what a finished run knows. Nothing is evaluated anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import AsJson, DataRoot, RunRecipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from haqsearch.cli.assemble import Assembly
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
    """Answer "what if the budget were x" without an evaluation: the best policy the run evaluated, and the best predicted."""
    from haqsearch.cli.deliver import read_json, reopen
    from haqsearch.search.records import read_trials
    from haqsearch.spec import Budget

    budgets = [Budget.parse(text) for text in budget]
    summary = read_json(run / "summary.json")
    limits = tuple(one.resolve(summary["int8_metrics"]) for one in budgets)
    records = read_trials(run / "trials.parquet")
    answer = evaluated(records, limits, str(run))
    has_table = any((run / "sensitivity").glob("*.json"))
    a = reopen(run, recipe, data_root) if has_table or answer.best is None else None
    if a is not None:
        a.meter.check_reachable(a.space, limits)
    found = {
        "budget": [{"text": one.text, "metric": one.metric, "limit": one.value} for one in limits],
        "evaluated": _content(answer.best, run),
        "nearest": _content(answer.nearest, run),
        "predicted": predicted(a, limits, records) if a is not None and has_table else None,
    }
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


def predicted(a: Assembly, limits: tuple[Limit, ...], records: Sequence[Record]) -> dict[str, Any] | None:
    """The exact optimum of the predicted objective inside ``limits``, from the run's sensitivity table: never evaluated for this.

    None if the table on disk is of another network, data or version; ``why_not`` where no exact solver can keep the limits.
    ``trial`` is its number if the run evaluated that very policy.
    """
    import numpy as np

    from haqsearch.agents.assignment import Assignment
    from haqsearch.errors import BudgetError
    from haqsearch.search.records import policy_text

    table = a.sensitivities.kept(a.sensitivity_measure)
    if table is None:
        return None
    problem = replace(a.problem, limits=limits, tradeoff=())
    place = {variable.name: i for i, variable in enumerate(a.space.variables)}
    pairs = {(place[one], place[other]): np.array(rises) for (one, other), rises in table.pairs.items()}
    try:
        key = Assignment(problem).solve([np.array(losses) for losses in table.losses(a.space)], pairs)
    except BudgetError as error:
        return {"why_not": str(error)}
    policy = a.space.policy(key)
    return {
        "policy_digest": policy.digest,
        "trial": next((r.number for r in records if r.policy == policy and r.score is not None), None),
        "measure": table.measure,
        "value": table.predict(a.space, policy),
        "metrics": a.meter.costs(policy),
        "policy": policy_text(policy),
    }


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
    best, nearest = found["evaluated"], found["nearest"]
    if best:
        print(f"evaluated: trial {best['trial']} ({best['source']}), {_scores(best)}")
        print(f"  policy {best['policy_digest']}" + (_how_to_export(best["point"])))
        shown = best
    else:
        print("evaluated: no policy of this run is inside, and nothing shows that none can be: search with this budget")
        print(f"  nearest: trial {nearest['trial']}, {nearest['violation']:.1%} over, {_scores(nearest)}")
        shown = nearest
    _print_costs(shown["metrics"], limits, int8)
    if (guess := found["predicted"]) is None:
        return
    if "why_not" in guess:
        print(f"predicted: nothing, for {guess['why_not']}")
        return
    trial = guess["trial"]
    print(
        f"predicted: {guess['measure']} {guess['value']:.4g} by the run's sensitivity table, the least there is",
        end="; ",
    )
    print("not evaluated" if trial is None else f"evaluated as trial {trial}")
    print(f"  policy {guess['policy_digest']}")
    _print_costs(guess["metrics"], limits, int8)


def _print_costs(metrics: Mapping[str, float], limits: tuple[Limit, ...], int8: Mapping[str, float]) -> None:
    from hwmodels.meter import quantity

    for limit in limits:
        value = metrics[limit.metric]
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
