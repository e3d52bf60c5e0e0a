"""The style of the plotly figures.

Every text that comes from a file passes ``label``: plotly reads a little HTML in its texts, so names are escaped there
as they are in the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A94A0", "#1C2430"
GRID = "#E8EBEF"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
AXIS = {
    "gridcolor": GRID,
    "linecolor": "#C5CCD4",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#C5CCD4",
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 8},
}


def label(text: str, longest: int = 200) -> str:
    """``text`` for a plotly label: shortened in the middle, escaped, one line."""
    text = " ".join(text.split())
    if len(text) > longest:
        keep = longest - 1
        text = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
    return html.escape(text, quote=False)


def styled(traces: Sequence[Any], height: int, **layout: Any) -> go.Figure:
    """A figure in the report's style."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        showlegend=False,
        dragmode=False,
        hovermode="closest",
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 12, "r": 14, "t": 12, "b": 12},
        modebar={"bgcolor": "rgba(255,255,255,0.85)", "color": GREY, "activecolor": BLUE},
        hoverlabel={
            "bgcolor": "#FFFFFF",
            "bordercolor": "#C5CCD4",
            "font": {"size": 12, "color": INK},
            "align": "left",
        },
    )
    figure.update_xaxes(AXIS)
    figure.update_yaxes(AXIS)
    figure.update_layout(**layout)
    return figure
