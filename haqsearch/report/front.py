"""The front of a search of several objectives: its points, numbered as in pareto.json."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import plotly.graph_objects as go

from haqsearch.report import figures, style
from haqsearch.report.records import Run, Trial
from haqsearch.report.units import axis_scale, exact, human, title

NUMBERED = 60  # points whose numbers are drawn; of longer fronts every second, third ... is, and the hover has all


def metrics(run: Run) -> list[str]:
    """The metrics that the run traded the objective for."""
    named = run.mapping("tradeoff").get("metrics")
    return [str(m) for m in named] if isinstance(named, list) else []


def caption(run: Run) -> str:
    """What the figure shows, what the hypervolume says, and how a point becomes a file."""
    front = run.mapping("tradeoff")
    text = (
        "Every point is a policy evaluated on the search split that no other beats in the objective and every cost at once, "
        "numbered as in pareto.json. "
    )
    volume, reference = front.get("hypervolume"), front.get("reference")
    if isinstance(volume, float) and isinstance(reference, dict):
        ends = [
            f"{title(name)} {human(name, value)}"
            if name in metrics(run)
            else f"{figures.SHORT.get(name, name)} {value:.4g}"
            for name, value in reference.items()
            if isinstance(value, int | float)
        ]
        text += (
            f"Hypervolume {volume:.4f}: the share they dominate of the box from a perfect network at no cost to the reference "
            f"point ({', '.join(ends)}): the worst uniform policy, and the limit or all layers at 8/8; errors by their "
            "logarithm from 1e-6 up. "
        )
    return text + "haqsearch export RUN --point K makes the files of point K."


def figure(run: Run, metric: str) -> go.Figure:
    """The objective against ``metric``: numbered points of the front, all other policies behind them."""
    objective = run.objective
    on_front = {p.digest for p in run.pareto}
    points = sorted(_drawable(run.pareto, run, metric), key=lambda p: (p.metrics[metric] or 0.0, p.number))
    others = [t for t in _drawable(run.trials, run, metric) if t.digest not in on_front]
    size, unit = axis_scale(metric, [t.metrics[metric] for t in (*points, *others)])

    def drawn(trials: Sequence[Trial], hover: list[str], **style: object) -> go.Scatter:
        x = [(t.metrics[metric] or 0.0) / size for t in trials]
        y = [figures.value_of(t, objective) for t in trials]
        return go.Scatter(x=x, y=y, hovertext=hover, hovertemplate="%{hovertext}<extra></extra>", **style)

    traces = [drawn(others, [_hover(t, metric, f"evaluation {t.number}") for t in others], mode="markers",
                    marker=figures.INFEASIBLE, opacity=0.5)]  # fmt: skip
    every = ceil(len(points) / NUMBERED)
    chosen = run.summary.get("policy_digest")
    traces.append(
        drawn(
            points,
            [_hover(p, metric, f"point {p.number}") for p in points],
            # In two dimensions the front is a staircase; of a front of more this is one view, and no line joins it.
            mode="lines+markers+text" if len(_counted(run)) == 1 else "markers+text",
            line={"color": style.GREEN, "width": 2, "shape": "hv"},
            marker={
                "symbol": ["star" if p.digest == chosen else "circle" for p in points],
                "size": [16 if p.digest == chosen else 8.5 for p in points],
                "color": [style.RED if p.digest == chosen else style.BLUE for p in points],
                "line": {"width": 0.8, "color": "#FFFFFF"},
            },
            text=[str(p.number) if i % every == 0 else "" for i, p in enumerate(points)],
            textposition="bottom left",
            textfont={"size": 10, "color": style.INK},
            cliponaxis=False,
        )
    )
    drawing = style.styled(traces, height=380, margin={"l": 12, "r": 24, "t": 22, "b": 12})
    drawing.update_xaxes(title={"text": f"{title(metric)} ({unit})" if unit else title(metric)}, nticks=7)
    values = [figures.value_of(t, objective) for t in (*points, *others)]
    drawing.update_yaxes(**figures.objective_axis(objective, values, None))
    return drawing


def _counted(run: Run) -> set[str]:
    """The metrics that pareto.json is a front of: the traded and the limited ones."""
    return {*metrics(run), *(str(line.get("metric")) for line in run.budget)}


def _drawable(trials: Sequence[Trial], run: Run, metric: str) -> list[Trial]:
    return [t for t in trials if figures.value_of(t, run.objective) is not None and t.metrics.get(metric) is not None]


def _hover(trial: Trial, metric: str, name: str) -> str:
    scores = [f"accuracy {trial.accuracy:.2%}"] if trial.accuracy is not None else []
    scores += [f"KL {trial.kl:.4g}"] if trial.kl is not None else []
    cost = f"{title(metric)}: {exact(metric, trial.metrics[metric])}"
    widths = f" · {style.label(trial.widths)}" if trial.widths else ""
    return f"<b>{name}</b>{widths}<br>policy {style.label(trial.digest)}<br>{', '.join(scores)}<br>{cost}"
