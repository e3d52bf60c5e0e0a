"""Predicted over published figures as one plain SVG, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from haqsearch.report.svg import COLOURS, GRID, LINE, opening, text, ticks

UNITS = {"latency_s": "seconds", "energy_j": "joule"}  # in words
# Around a point: square, diamond, and a triangle standing and one hanging. With the colours they tell 32 sets apart.
SHAPES = ("m-2.5-2.5h5v5h-5z", "m0-3.5l3.5 3.5-3.5 3.5-3.5-3.5z", "m0-3l3.5 6h-7z", "m0 3l3.5-6h-7z")
SIDE, LEFT, TOP, BOTTOM, RIGHT = 520, 76, 28, 48, 190
WIDTH, HEIGHT = LEFT + SIDE + RIGHT, TOP + SIDE + BOTTOM


def draw(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """An SVG of ``rows``, which have set, published and predicted ``metric``; a mark for each pixel that a set meets.

    On the line the prediction is right; the dashed ones are 10 % away. What is not above 0 has no place and is left out.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found = points.setdefault(str(row["set"]), [])
        if row["published"] > 0 and row["predicted"] > 0:
            found.append((log10(row["published"]), log10(row["predicted"])))
    logs = [value for found in points.values() for point in found for value in point] or [0.0]
    low, high = min(logs) - 0.2, max(logs) + 0.2

    def at(x: float, y: float) -> str:
        """Pixels of two logarithms, as a path has them."""
        scale = SIDE / (high - low)
        return f"{LEFT + scale * (x - low):.0f} {TOP + scale * (high - y):.0f}"

    parts = [opening(WIDTH, HEIGHT), text(LEFT, 18, metric, 'font-weight="600"')]
    round_values = ticks(low, high, True)
    powers = [value for value in round_values if log10(value).is_integer()]
    for value in powers if len(powers) > 1 else round_values:
        x, y = at(log10(value), log10(value)).split()
        parts.append(f'<path d="M{LEFT} {y}h{SIDE}M{x} {TOP}v{SIDE}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 6, float(y) + 4, f"{value:g}", 'text-anchor="end"'))
        parts.append(text(float(x), TOP + SIDE + 18, f"{value:g}", 'text-anchor="middle"'))
    off = log10(1.1)
    for dash, start, end in (
        ("", (low, low), (high, high)),
        ("4 3", (low, low + off), (high - off, high)),
        ("4 3", (low + off, low), (high, high - off)),
    ):
        parts.append(f'<path d="M{at(*start)}L{at(*end)}" stroke="{LINE}" stroke-dasharray="{dash}"/>')
    for number, (name, found) in enumerate(points.items()):
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS) % len(SHAPES)]
        marks = "".join(f"M{place}{shape}" for place in dict.fromkeys(at(*point) for point in found))
        beside = TOP + 8 + 17 * number
        parts.append(f'<path d="{marks}" fill="{colour}" fill-opacity="0.7"/>')
        parts.append(f'<path d="M{LEFT + SIDE + 14} {beside}{shape}" fill="{colour}"/>')
        parts.append(text(LEFT + SIDE + 24, beside + 4, name))
    middle, unit = TOP + SIDE / 2, UNITS.get(metric, metric)
    parts.append(text(LEFT + SIDE / 2, HEIGHT - 8, f"published, {unit}", 'text-anchor="middle"'))
    parts.append(text(16, middle, f"predicted, {unit}", f'text-anchor="middle" transform="rotate(-90 16 {middle:g})"'))
    return "\n".join([*parts, "</svg>"]) + "\n"
