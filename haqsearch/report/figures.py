"""The figures of a run, as plotly figures made from plain records.

Shapes tell the kinds of points apart as well as colours do (Okabe-Ito palette).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from statistics import quantiles
from typing import Any

import plotly.graph_objects as go

from haqsearch.report.records import Bits, Layer, Run, Trial
from haqsearch.report.style import AXIS, BLUE, GREEN, GREY, INK, ORANGE, RED, label, styled
from haqsearch.report.units import axis_scale, exact, finite, human, percent, title
from haqsearch.spec import OBJECTIVES, Objective, front

INFEASIBLE = {"symbol": "circle-open", "size": 7, "color": GREY, "line": {"width": 1.2}}
FEASIBLE = {"symbol": "circle", "size": 7.5, "color": BLUE, "line": {"width": 0.8, "color": "#FFFFFF"}}
UNIFORM = {"symbol": "diamond", "size": 9, "color": ORANGE, "line": {"width": 1, "color": "#5E4200"}}
LONGEST_TICK = 26  # characters of a layer name under the bars; the hover and the table have all of it
LABELLED_BARS = 40  # layers; with more, the numbers above the bars would run into each other
SHORT = {
    "accuracy": "accuracy",
    "loss": "loss (nats)",
    "kl": "KL to float (nats)",
    "logit_mse": "logit error",
    "score": "score",
}


# --- bits per layer ---------------------------------------------------------------------------------------------


def bits_per_layer(run: Run) -> go.Figure:
    """Grouped bars of weight and activation bits in network order, and under them each layer's share of one cost."""
    layers, share_of = run.layers, share_metric(run)
    widths = [b.width for layer in layers for b in (layer.weight, layer.activation) if b.width and not b.is_float]
    top = max(8.0, *widths) if widths else 8.0
    names = [label(layer.name, LONGEST_TICK) for layer in layers]
    positions = list(range(len(layers)))
    hover = [_layer_hover(layer, layers) for layer in layers]
    traces: list[Any] = []
    for role, colour in (("weight", BLUE), ("activation", ORANGE)):
        bits: list[Bits] = [getattr(layer, role) for layer in layers]
        traces.append(
            go.Bar(
                x=positions,
                y=[top if b.is_float else b.width for b in bits],
                text=[_short(b) for b in bits] if len(layers) <= LABELLED_BARS else None,
                textposition="outside",
                textangle=0,
                textfont={"size": 10, "color": INK},
                cliponaxis=False,
                hovertext=hover,
                hovertemplate="%{hovertext}<extra></extra>",
                marker={
                    "color": ["#B4BCC6" if b.is_float else colour for b in bits],
                    "line": {"width": 0},
                    "pattern": {
                        "shape": ["/" if layer.pinned else "" for layer in layers],
                        "fillmode": "replace",
                        "size": 5,
                        "solidity": 0.45,
                        "fgcolor": colour,
                        "bgcolor": "#FFFFFF",
                    },
                },
            )
        )
    lower = _shares(layers, share_of) if share_of else None
    if lower is not None and share_of:
        traces.append(
            go.Bar(
                x=positions,
                y=lower,
                yaxis="y2",
                hovertext=hover,
                hovertemplate="%{hovertext}<extra></extra>",
                marker={"color": GREY, "line": {"width": 0}},
                width=0.62,
            )
        )
    label_room = round(6.4 * max((len(n) for n in names), default=0))
    figure = styled(
        traces,
        height=(390 if lower else 300) + label_room,
        barmode="group",
        bargap=0.24,
        bargroupgap=0.06,
        margin={"l": 12, "r": 8, "t": 16, "b": 12},
    )
    figure.update_xaxes(tickvals=positions, ticktext=names, tickangle=-90, tickfont={"size": 11})
    figure.update_xaxes(showgrid=False, range=[-0.7, len(layers) - 0.3])
    figure.update_yaxes(domain=[0.36, 1] if lower else [0, 1], range=[0, top * 1.1], title={"text": "bits"}, dtick=2)
    if lower and share_of:
        figure.update_layout(
            xaxis={"anchor": "y2"},
            yaxis2=AXIS
            | {
                "domain": [0, 0.24],
                "title": {"text": f"share of<br>{title(share_of).lower()}", "standoff": 8},
                "ticksuffix": " %",
                "nticks": 4,
                "rangemode": "tozero",
            },
        )
    return figure


def _short(bits: Bits) -> str:
    return "f32" if bits.is_float else f"{bits.width:g}" if bits.width else ""


def share_metric(run: Run) -> str | None:
    """The cost whose shares are drawn under the bits: the first with a budget that layers have, else latency."""
    for metric in run.metrics:
        if sum(layer.costs.get(metric, 0.0) for layer in run.layers) > 0:
            return metric
    return None


def _shares(layers: Sequence[Layer], metric: str) -> list[float | None]:
    whole = sum(layer.costs.get(metric, 0.0) for layer in layers)
    return [100 * layer.costs[metric] / whole if metric in layer.costs else None for layer in layers]


def _layer_hover(layer: Layer, layers: Sequence[Layer]) -> str:
    lines = [f"<b>{label(layer.name)}</b>", f"weights {label(layer.weight.text)}, input {label(layer.activation.text)}"]
    if layer.pinned:
        lines.append("pinned: not searched")
    for metric, value in layer.costs.items():
        whole = sum(other.costs.get(metric, 0.0) for other in layers)
        share = f" · {percent(value / whole, 1)} of all layers" if whole > 0 else ""
        lines.append(f"{title(metric)} {human(metric, value)} ({exact(metric, value)}){share}")
    if layer.bound:
        lines.append(f"bound by {label(layer.bound)}")
    return "<br>".join(lines)


# --- accuracy (or the objective) against a cost ------------------------------------------------------------------


def value_of(trial: Trial, objective: Objective) -> float | None:
    """The trial's accuracy in percent, or its loss, KL or score."""
    value = finite(getattr(trial, objective.name))
    return 100 * value if value is not None and objective.name == "accuracy" else value


def scatter(run: Run, metric: str, objective: Objective = OBJECTIVES["accuracy"]) -> go.Figure:
    """Every evaluated policy: ``objective`` on the search split against ``metric``, with front, limit and choice."""
    shown = [t for t in run.trials if value_of(t, objective) is not None and t.metrics.get(metric) is not None]
    size, unit = axis_scale(metric, [t.metrics[metric] for t in shown])
    limit = next((finite(line.get("limit")) for line in run.budget if line.get("metric") == metric), None)

    def xy(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [(t.metrics[metric] or 0.0) / size for t in trials], [value_of(t, objective) or 0.0 for t in trials]

    def hover(t: Trial) -> str:
        state = "meets every limit" if t.feasible else f"breaks the budget (violation {t.violation or 0:.3g})"
        head = "uniform " + label(t.widths) if t.uniform else f"evaluation {t.number}"
        extra = "" if t.uniform else f" · {label(t.widths)}"
        cost = f"{title(metric)}: {exact(metric, t.metrics[metric])}"
        return f"<b>{head}</b>{extra}<br>policy {label(t.digest)}<br>{state}<br>{cost}"

    shape = "%{y:.3f} %" if objective.name == "accuracy" else "%{y:.6~g}"
    template = "%{hovertext}<br>" + f"{SHORT[objective.name]}: {shape}<br>search split<extra></extra>"
    traces: list[Any] = []

    def add(trials: Sequence[Trial], **style: Any) -> None:
        if trials:
            x, y = xy(trials)
            traces.append(
                go.Scatter(
                    x=x, y=y, mode="markers", hovertext=[hover(t) for t in trials], hovertemplate=template, **style
                )
            )

    agent = [t for t in shown if not t.uniform]
    add([t for t in agent if not t.feasible], marker=INFEASIBLE, opacity=0.75)
    add([t for t in agent if t.feasible], marker=FEASIBLE)
    add([t for t in shown if t.uniform], marker=UNIFORM)
    best = front_line(shown, metric, objective)
    if len(best) > 1:
        x, y = xy(best)
        line = {"color": GREEN, "width": 2, "shape": "hv"}
        traces.insert(0, go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip"))
    chosen = run.chosen
    if chosen is not None and value_of(chosen, objective) is not None and chosen.metrics.get(metric) is not None:
        x, y = xy([chosen])
        star = {"symbol": "star", "size": 18, "color": RED, "line": {"width": 1.4, "color": "#FFFFFF"}}
        text = ["<b>chosen policy</b><br>" + hover(chosen)]
        traces.append(go.Scatter(x=x, y=y, mode="markers", marker=star, hovertext=text, hovertemplate=template))
    figure = styled(traces, height=330)
    figure.update_xaxes(title={"text": f"{title(metric)} ({unit})" if unit else title(metric)}, nticks=7)
    best_known = value_of(chosen, objective) if chosen else None
    figure.update_yaxes(**objective_axis(objective, [value_of(t, objective) for t in shown], best_known))
    if limit is not None:
        _draw_limit(figure, limit / size, human(metric, limit), xy(shown)[0])
    return figure


def front_line(trials: Sequence[Trial], metric: str, objective: Objective) -> list[Trial]:
    """The trials no other beats in both this metric and the objective, cheapest first."""
    points = [(t.metrics[metric] or 0.0, -objective.sign * (value_of(t, objective) or 0.0)) for t in trials]
    best = float("inf")
    candidates = []  # a sweep keeps the few that ``front`` has to compare
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            candidates.append(i)
    kept = front([points[i] for i in candidates])
    return [trials[candidates[i]] for i in kept]


def clipped(run: Run, objective: Objective = OBJECTIVES["accuracy"]) -> int:
    """How many evaluated policies lie outside the accuracy axis as first shown."""
    values = [v for t in run.trials if (v := value_of(t, objective)) is not None]
    chosen = value_of(run.chosen, objective) if run.chosen else None
    bounds = objective_axis(objective, [*values], chosen).get("range")
    return sum(not bounds[0] <= v <= bounds[1] for v in values) if bounds and objective.name == "accuracy" else 0


def objective_axis(objective: Objective, values: Sequence[float | None], chosen: float | None) -> dict[str, Any]:
    """Layout of the axis of an objective: in percent, or logarithmic where values differ twentyfold."""
    known = [v for v in values if v is not None]
    axis: dict[str, Any] = {"title": {"text": SHORT[objective.name]}}
    if objective.name == "accuracy":
        axis |= {"ticksuffix": " %"}
        if len(known) >= 8:  # collapsed policies would press all the others into one line
            high, low = max(known), min(quantiles(known, n=5)[0], chosen if chosen is not None else max(known))
            if low - min(known) > 0.5 * max(high - low, 0.1):
                axis["range"] = [low - 0.12 * max(high - low, 0.1), high + 0.12 * max(high - low, 0.1)]
    elif objective.sign < 0 and known and min(known) > 0 and max(known) / min(known) > 20:
        decades = range(floor(log10(min(known))), ceil(log10(max(known))) + 1)
        steps = (1, 2, 5) if len(decades) <= 4 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    return axis


def _draw_limit(figure: go.Figure, x: float, text: str, values: Sequence[float]) -> None:
    """A dashed line at ``x`` (in the axis' unit) with its name above, and a tint over what exceeds it."""
    low, high = min([*values, x]), max([*values, x])
    pad = 0.06 * ((high - low) or abs(x) or 1.0)
    figure.update_xaxes(range=[low - pad, high + pad])
    figure.add_vrect(x0=x, x1=high + pad, fillcolor=RED, opacity=0.06, line_width=0, layer="below")
    figure.add_vline(x=x, line={"color": RED, "width": 1.5, "dash": "dash"})
    right = (x - low) / ((high - low) or 1.0) < 0.5
    figure.add_annotation(
        x=x,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="left" if right else "right",
        xshift=-6 if right else 6,
        text=f"limit {text}",
        showarrow=False,
        font={"size": 11, "color": "#A33F00"},
    )
    figure.update_layout(margin={"t": 26})


# --- search progress ---------------------------------------------------------------------------------------------


def progress(run: Run) -> go.Figure:
    """Every evaluation and the best feasible one so far; without a feasible one, how far the budget was exceeded."""
    objective = run.objective
    by_violation = not any(t.feasible and value_of(t, objective) is not None for t in run.trials)

    def value(t: Trial) -> float | None:
        if by_violation:
            return 100 * t.violation if t.violation is not None and not t.error else None
        return value_of(t, objective)

    shown = sorted((t for t in run.trials if value(t) is not None), key=lambda t: t.number)
    name = "budget exceeded by" if by_violation else SHORT[objective.name]
    suffix = " %" if by_violation or objective.name == "accuracy" else ""
    template = "%{hovertext}<br>" + name + ": %{y:.6~g}" + suffix + "<extra></extra>"
    traces: list[Any] = []
    groups = (
        ([t for t in shown if not t.uniform and not t.feasible], INFEASIBLE),
        ([t for t in shown if not t.uniform and t.feasible], FEASIBLE),
        ([t for t in shown if t.uniform], UNIFORM),
    )
    for trials, marker in groups:
        if trials:
            hover = [f"<b>evaluation {t.number}</b> · {label(t.widths)}<br>policy {label(t.digest)}" for t in trials]
            traces.append(
                go.Scatter(
                    x=[t.number for t in trials],
                    y=[value(t) for t in trials],
                    mode="markers",
                    marker=marker,
                    opacity=0.8,
                    hovertext=hover,
                    hovertemplate=template,
                )
            )
    sign = -1 if by_violation else objective.sign
    x, y = _best_so_far(shown, value, sign, feasible_only=not by_violation)
    if x:
        line = {"color": INK, "width": 2.2, "shape": "hv"}
        template = f"best so far: %{{y:.6~g}}{suffix}<extra></extra>"
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, hovertemplate=template))
    figure = styled(traces, height=320)
    figure.update_xaxes(title={"text": "evaluation"}, rangemode="tozero")
    if by_violation:
        figure.update_yaxes(ticksuffix=" %", title={"text": name})
    else:
        figure.update_yaxes(**objective_axis(objective, [value(t) for t in shown], None))
    return figure


def _best_so_far(trials: Sequence[Trial], value: Any, sign: int, feasible_only: bool) -> tuple[list[int], list[float]]:
    x: list[int] = []
    y: list[float] = []
    for trial in trials:
        if trial.feasible or not feasible_only:
            found = value(trial)
            if not y or sign * found > sign * y[-1]:
                x.append(trial.number)
                y.append(found)
    if x and trials[-1].number > x[-1]:
        x.append(trials[-1].number)
        y.append(y[-1])
    return x, y
