"""The report of a run: ``write_report`` reads a run folder and writes one ``report.html`` into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from haqsearch.report import figures, front, style, tables
from haqsearch.report.page import caption, card, page, place
from haqsearch.report.records import Run, load
from haqsearch.report.units import MINUS, MISSING, TIMES, count, finite, human, percent, plural, points, title, wilson
from haqsearch.spec import OBJECTIVES, Objective


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the run folder ``folder`` and return its path.

    The file appears whole or not at all. Raises ReportError if a file of the run is missing or damaged.
    """
    run = load(folder)
    path = run.folder / "report.html"
    text = render(run)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(temporary, path)  # noqa: PTH105  (said as the promise is made: atomically)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The whole page as text."""
    plots: dict[str, Any] = {}
    body = "\n".join(
        section
        for section in (
            _headline(run),
            _budget_and_summary(run),
            _front(run, plots),
            _bits(run, plots),
            _layers(run),
            _trade_off(run, plots),
            _progress(run, plots),
            _pareto(run),
            _footer(run),
        )
        if section
    )
    return page(f"{run.summary.get('name') or run.folder.name} · haqsearch report", body, plots)


def _headline(run: Run) -> str:
    state, badge = ("ok", "✓ Budget met") if run.summary.get("feasible") else ("bad", "✗ Budget not met")
    if not run.budget:
        state, badge = "none", "No budget set"
    named = (run.summary.get("model"), run.summary.get("data"), run.mapping("hardware").get("name"))
    about = " · ".join(str(x) for x in named if x)
    return (
        f'<section class="card head {state}"><div class="eyebrow">haqsearch report · {escape(about)}</div>'
        f"<h1>{escape(str(run.summary.get('name') or run.folder.name))}</h1>"
        f'<div class="badge {state}">{escape(badge)}</div><p class="lead">{escape(_sentence(run))}</p>'
        f"{_kpis(run)}</section>"
    )


def _sentence(run: Run) -> str:
    """The outcome in one or two sentences."""
    accuracy, base = run.number("accuracy"), run.number("float_accuracy")
    parts = []
    if not run.summary.get("feasible") and run.budget:
        if not run.number("feasible_evaluations"):
            parts.append(f"None of the {count(run.number('evaluations'))} evaluated policies met every limit.")
        over = [
            f"{title(str(line.get('metric'))).lower()} at {percent(value / limit, 1)} of its limit"
            for line in run.budget
            if not line.get("met") and (value := finite(line.get("value"))) and (limit := finite(line.get("limit")))
        ]
        parts += [f"Over budget: {', '.join(over)}."] if over else []
        if run.layers:
            parts.append("What follows describes the nearest policy found.")
    if accuracy is not None:
        text = f"Accuracy {percent(accuracy)}"
        if base is not None:
            drop = accuracy - base
            side = "below" if drop < 0 else "above"
            text += (
                f", {points(abs(drop)).lstrip('+±').replace('pts', 'points')} {side} float"
                if round(drop, 6)
                else ", as float"
            )
        savings = [s for metric in run.metrics[: max(len(run.budget), 2)] if (s := _saving(run, metric))]
        parts.append(text + (f"; against int8: {', '.join(savings)}." if savings else "."))
    return " ".join(parts).replace(" %", "\u00a0%")


def _saving(run: Run, metric: str) -> str:
    value, base = finite(run.mapping("metrics").get(metric)), finite(run.mapping("int8_metrics").get(metric))
    if value is None or not base:
        return ""
    change = round(100 * (value / base - 1))
    sign = MINUS if change < 0 else "+" if change > 0 else "±"
    return f"{title(metric).lower()} {sign}{abs(change)} %"


def _kpis(run: Run) -> str:
    accuracy, base, int8 = run.number("accuracy"), run.number("float_accuracy"), run.number("int8_accuracy")
    band = wilson(accuracy, finite(run.mapping("splits").get("report")))
    interval = f"95 % CI {100 * band[0]:.1f}{MISSING}{100 * band[1]:.1f} %" if band else "on the report split"
    cards = [("Accuracy", percent(accuracy), interval)]
    if base is not None:
        cards.append(("Against float", points(None if accuracy is None else accuracy - base), f"float {percent(base)}"))
    if int8 is not None:
        cards.append(("Against int8", points(None if accuracy is None else accuracy - int8), f"int8 {percent(int8)}"))
    uniform = run.mapping("uniform")
    tuned = finite(uniform.get("finished_accuracy"))  # what the same finish made of the baseline
    if (flat := finite(uniform.get("accuracy")) if tuned is None else tuned) is not None:
        gain = None if accuracy is None else accuracy - flat
        cards.append(("Against best uniform", points(gain), f"{uniform.get('policy') or 'uniform'}: {percent(flat)}"))
    for metric in run.metrics[: max(len(run.budget), 2)]:
        value, reference = finite(run.mapping("metrics").get(metric)), finite(run.mapping("int8_metrics").get(metric))
        if value is not None:
            ratio = f"{value / reference:.2f}{TIMES} int8 ({human(metric, reference)})" if reference else ""
            cards.append((title(metric), human(metric, value), ratio))
    items = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in cards
    )
    return f'<dl class="kpis">{items}</dl>'


def _budget_and_summary(run: Run) -> str:
    left = (
        f"<div>{card('Budget', tables.budget(run))}{card('Wall time', tables.stages(run.mapping('seconds')))}"
        f"{card('Ladder', rungs) if (rungs := tables.ladder(run)) else ''}</div>"
    )
    return f'<div class="columns">{left}<div>{card("Run", tables.summary(run))}</div></div>'


def _front(run: Run, plots: dict[str, Any]) -> str:
    metrics = front.metrics(run)
    if not metrics or not run.pareto:
        return ""
    legend = _legend(
        [("circle", "on the front"), ("ring", "beaten by another"), ("star", "chosen: the best objective")]
    )
    plotted = "".join(
        f"<div><h3>{escape(title(m))}</h3>{place(plots, f'front-{k}', front.figure(run, m))}</div>"
        for k, m in enumerate(metrics)
    )
    grid = f'<div class="{"plots" if len(metrics) > 1 else "single"}">{plotted}</div>'
    return card("The front", caption(front.caption(run)), legend, grid)


def _bits(run: Run, plots: dict[str, Any]) -> str:
    if not run.layers:
        return card("Bits per layer", caption("There is no chosen policy to show."))
    pinned = sum(layer.pinned for layer in run.layers)
    items = [("square-blue", "weights"), ("square-orange", "input activations")]
    items += [("hatch", f"pinned, not searched ({pinned})")] if pinned else []
    items += [("square-light", "float32")] if any(layer.weight.is_float for layer in run.layers) else []
    share = figures.share_metric(run)
    text = "Layers in network order."
    if share:
        text += f" Grey: each layer's share of the sum of their {title(share).lower()}."
    plot = place(plots, "bits", figures.bits_per_layer(run), width=18 * len(run.layers) + 70)
    return card(
        "Bits per layer", caption(text), _legend(items), f'<div class="scroll single" tabindex="0">{plot}</div>'
    )


def _layers(run: Run) -> str:
    if not run.layers:
        return ""
    text = (
        "Costs from the device's cost model; the bar compares a cost with its column's largest. Hover for exact values."
    )
    return card("Layers", caption(text), tables.layers(run))


def _trade_off(run: Run, plots: dict[str, Any]) -> str:
    scored = [t for t in run.trials if t.accuracy is not None]
    if not scored:
        return card("Accuracy against cost", caption("No policy was evaluated without an error."))
    metrics = [m for m in run.metrics if any(t.metrics.get(m) is not None for t in scored)]
    text = (
        "Every evaluated policy, on the search split. The line joins the policies that no other beats in both the cost "
        "shown and the vertical axis; with several metrics a policy off this line may still be in the Pareto set."
    )
    if hidden := figures.clipped(run):
        text += f" {hidden} of {len(scored)} policies fall below the accuracy shown; pan the figure to see them."
    if run.chosen is None and run.summary.get("policy_digest"):
        text += " The chosen policy is not marked: " + (
            "the second search found it, whose scores, of weights rounded in network order, are not comparable with these."
            if run.mapping("refined")
            else "it was not scored on the search split."
        )
    kinds = [*_KINDS, ("line-green", "front")]
    kinds += [("star", "chosen")] if run.chosen else []
    kinds += [("dash", "limit")] if run.budget else []
    legend = _legend(kinds)
    views = [OBJECTIVES["accuracy"]]
    if run.objective.sign < 0 and any(figures.value_of(t, run.objective) is not None for t in scored):
        views.append(run.objective)
    tabs = "".join(
        f'<button type="button" data-shows="view-{v.name}" aria-pressed="{"false" if i else "true"}">'
        f"{escape(_view_name(v))}</button>"
        for i, v in enumerate(views)
    )
    grids = "".join(
        f'<div class="plots" id="view-{v.name}"{" hidden" if i else ""}>'
        + "".join(
            f"<div><h3>{escape(title(m))}</h3>{place(plots, f'{v.name}-{k}', figures.scatter(run, m, v))}</div>"
            for k, m in enumerate(metrics)
        )
        + "</div>"
        for i, v in enumerate(views)
    )
    switch = f'<div class="tabs" role="group" aria-label="Vertical axis">{tabs}</div>' if len(views) > 1 else ""
    return card("Accuracy against cost", caption(text), switch, legend, grids)


def _view_name(objective: Objective) -> str:
    names = {"accuracy": "Accuracy", "kl": "KL to float", "loss": "Loss", "logit_mse": "Logit error"}
    return names[objective.name] + ("" if objective.name == "accuracy" else " (the objective)")


def _progress(run: Run, plots: dict[str, Any]) -> str:
    if not run.trials:
        return ""
    feasible = any(t.feasible and figures.value_of(t, run.objective) is not None for t in run.trials)
    if feasible:
        way = "higher is better" if run.objective.sign > 0 else "lower is better"
        text = (
            f"The objective on the search split ({way}): {run.objective.title}; and the best within the budget so far."
        )
    else:
        text = "No policy met the budget: by how much each exceeded it (summed over the limits), and the least so far."
    legend = _legend([*_KINDS, ("line-ink", "best so far")])
    return card(
        "Search progress",
        caption(text),
        legend,
        f'<div class="single">{place(plots, "progress", figures.progress(run))}</div>',
    )


def _pareto(run: Run) -> str:
    size = plural(len(run.pareto), "policy", "policies")
    text = f"{size} that no other evaluated policy beats in the objective and every metric at once."
    return card(
        "Pareto set", caption(text), f"<details><summary>Show the policies</summary>{tables.pareto(run)}</details>"
    )


def _footer(run: Run) -> str:
    raw = run.summary.get("notes")
    notes = [str(note) for note in raw] if isinstance(raw, list) else []
    listed = f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""
    errors = [t for t in run.trials if t.error]
    failed = ""
    if errors:
        lost = plural(len(errors), "evaluation", "evaluations")
        first = escape(f"evaluation {errors[0].number}: {errors[0].error[:300]}")
        failed = f'<p class="quiet gap">{lost} failed and in no figure; the first: {first}</p>'
    return (
        (card("Notes", listed) if listed else "")
        + card("Where the numbers come from", tables.provenance(run), failed,
                '<h3 class="gap">Environment</h3>', tables.environment(run))
        + f"<footer>haqsearch {escape(str(run.environment.get('haqsearch') or ''))} · report.html is self-contained: "
        "no network, nothing is sent.</footer>"
    )  # fmt: skip


_KINDS = [("circle", "meets the budget"), ("ring", "breaks the budget"), ("diamond", "uniform policy")]
_SYMBOLS: Mapping[str, str] = {
    "circle": f'<circle cx="8" cy="8" r="4.5" fill="{style.BLUE}"/>',
    "ring": f'<circle cx="8" cy="8" r="4" fill="none" stroke="{style.GREY}" stroke-width="1.6"/>',
    "diamond": f'<path d="M8 2.5 13.5 8 8 13.5 2.5 8z" fill="{style.ORANGE}" stroke="#5E4200"/>',
    "star": f'<path d="M8 .8l2.1 4.7 5.1.5-3.8 3.4 1.1 5L8 11.8l-4.5 2.6 1.1-5L.8 6l5.1-.5z" fill="{style.RED}"/>',
    "line-green": f'<path d="M0 8h16" stroke="{style.GREEN}" stroke-width="2.5"/>',
    "line-ink": f'<path d="M0 8h16" stroke="{style.INK}" stroke-width="2.5"/>',
    "dash": f'<path d="M0 8h16" stroke="{style.RED}" stroke-width="2" stroke-dasharray="4 2"/>',
    "square-blue": f'<path d="M2 2h12v12H2z" fill="{style.BLUE}"/>',
    "square-orange": f'<path d="M2 2h12v12H2z" fill="{style.ORANGE}"/>',
    "square-light": '<path d="M2 2h12v12H2z" fill="#B4BCC6"/>',
    "hatch": f'<path d="M2 2h12v12H2zM2 8 8 2M2 14 14 2M8 14l6-6" fill="none" stroke="{style.BLUE}"/>',
}


def _legend(items: list[tuple[str, str]]) -> str:
    box = '<svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true">'
    drawn = "".join(f"<li>{box}{_SYMBOLS[symbol]}</svg>{escape(text)}</li>" for symbol, text in items)
    return f'<ul class="legend">{drawn}</ul>'
