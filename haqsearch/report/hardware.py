"""Pages about devices: predicted against published figures, and a device's roofline. They take plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from haqsearch.files import write_text_atomic
from haqsearch.report.page import caption, card, page, place
from haqsearch.report.scatter import UNITS
from haqsearch.report.style import BLUE, GREEN, GREY, INK, ORANGE, RED, label, styled

_COLOURS = (BLUE, ORANGE, GREEN, RED, "#56B4E9", "#CC79A7", "#F0E442", INK)
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon")


def write_scatter(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A page with predicted over published, one figure a metric; rows have set, device, case, metric, published, predicted."""
    plots: dict[str, Any] = {}
    sections = []
    for metric in dict.fromkeys(str(row["metric"]) for row in rows):
        figure = _scatter([row for row in rows if row["metric"] == metric], metric)
        text = (
            "Every point is a published figure; on the line, the prediction is right. The dashed lines are 10 % away."
        )
        sections.append(_section(metric, place(plots, f"plot-{metric}", figure), text))
    write_text_atomic(path, page("Predicted against published", "\n".join(sections), plots))


def write_roofline(path: Path, device: Mapping[str, Any]) -> None:
    """A page with the roofline of a device: name, summary, bandwidth_bytes_per_s and roofs, as ``hw show --json`` gives them."""
    plots: dict[str, Any] = {}
    plot = place(plots, "plot-roofline", _roofline(device))
    body = _section(
        f"{device['name']}: {device['summary']}", plot, "Attainable speed over the MACs done per byte of outer memory."
    )
    write_text_atomic(path, page(f"Roofline of {device['name']}", body, plots))


def _section(heading: str, plot: str, text: str) -> str:
    return card(heading, f'<div class="single">{plot}</div>', caption(text))


def _scatter(rows: Sequence[Mapping[str, Any]], metric: str) -> go.Figure:
    traces: list[Any] = []
    for i, name in enumerate(dict.fromkeys(str(row["set"]) for row in rows)):
        group = [row for row in rows if row["set"] == name and row["published"] > 0 and row["predicted"] > 0]
        traces.append(
            go.Scatter(
                x=[row["published"] for row in group],
                y=[row["predicted"] for row in group],
                mode="markers",
                name=label(name),
                text=[label(f"{r['device']}: {r['case']}: {r['predicted'] / r['published'] - 1:+.1%}") for r in group],
                hovertemplate="%{text}<br>published %{x:.3g}, predicted %{y:.3g}<extra></extra>",
                marker={
                    "color": _COLOURS[i % len(_COLOURS)],
                    "symbol": _SYMBOLS[i // len(_COLOURS) % 8],
                    "size": 5,
                    "opacity": 0.7,
                },
            )
        )
    values = [row[key] for row in rows for key in ("published", "predicted") if row[key] > 0]
    ends = [min(values) / 2, max(values) * 2]
    for factor, dash in ((1.0, "solid"), (1.1, "dot"), (1 / 1.1, "dot")):
        line = {"color": GREY, "width": 1, "dash": dash}
        y = [end * factor for end in ends]
        traces.append(go.Scatter(x=ends, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))
    unit = UNITS.get(metric, metric)
    figure = styled(traces, 620, showlegend=True, legend={"orientation": "h", "y": -0.15})
    figure.update_xaxes(type="log", title=f"published, {unit}", exponentformat="e")
    figure.update_yaxes(type="log", title=f"predicted, {unit}", exponentformat="e")
    return figure


def _roofline(device: Mapping[str, Any]) -> go.Figure:
    bandwidth, traces = device["bandwidth_bytes_per_s"], []
    peaks: dict[float, list[str]] = {}
    for roof in device["roofs"]:
        peaks.setdefault(roof["peak_macs_per_s"], []).append(f"w{roof['weight_bits']}a{roof['activation_bits']}")
    lowest, highest = min(peaks, default=1.0) / 10, max(peaks, default=1.0)
    for i, (peak, names) in enumerate(sorted(peaks.items(), reverse=True)):
        x = [lowest / bandwidth, peak / bandwidth, highest * 5 / bandwidth] if bandwidth else [0.1, 1e3]
        y = [lowest, peak, peak] if bandwidth else [peak, peak]
        name = label(", ".join(names), 60)
        traces.append(
            go.Scatter(x=x, y=y, mode="lines", name=name, line={"color": _COLOURS[i % len(_COLOURS)], "width": 2})
        )
    figure = styled(traces, 460, showlegend=True)
    figure.update_xaxes(type="log", title="MAC per byte of outer memory", exponentformat="e")
    figure.update_yaxes(type="log", title="MAC per second", exponentformat="e")
    return figure
