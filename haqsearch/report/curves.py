"""Best-so-far curves as one plain SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log10

from haqsearch.report.svg import COLOURS, GRID, LINE, opening, text, ticks

DASHES = ("", "6 3", "2 3")  # tell curves of one colour apart
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 64, 170, 28, 44


@dataclass(frozen=True)
class Curve:
    """``middle``, ``low`` and ``high`` after each of ``x`` evaluations; not finite where there is nothing yet."""

    name: str
    x: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def draw(curves: Sequence[Curve], title: str, x_title: str, y_title: str) -> str:
    """An SVG: a line and a band for each curve, the value axis logarithmic if all values are positive."""
    values = [y for c in curves for part in (c.middle, c.low, c.high) for y in part if isfinite(y)]
    if not values:
        values = [1.0, 2.0]
    log = min(values) > 0
    scale: Callable[[float], float] = log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    pad = 0.04 * (high - low) or 0.5
    low, high = low - pad, high + pad
    last = max((x for c in curves for x in c.x), default=1.0)

    def px(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * x / last, 1)

    def py(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - scale(y)) / (high - low), 1)

    parts = [
        opening(WIDTH, HEIGHT),
        text(LEFT, 18, title, 'font-weight="600"'),
    ]
    for y in ticks(low, high, log):
        parts.append(f'<path d="M{LEFT} {py(y)}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        parts.append(text(LEFT - 6, py(y) + 4, f"{y:g}", 'text-anchor="end"'))
    for x in ticks(0.0, last, False):
        parts.append(f'<path d="M{px(x)} {HEIGHT - BOTTOM}v4" stroke="{LINE}"/>')
        parts.append(text(px(x), HEIGHT - BOTTOM + 18, f"{x:g}", 'text-anchor="middle"'))
    parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="{LINE}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, 'text-anchor="middle"'))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(16, middle, y_title, f'text-anchor="middle" transform="rotate(-90 16 {middle:g})"'))
    for number, curve in enumerate(curves):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        seen = [i for i, bounds in enumerate(zip(curve.low, curve.high, strict=True)) if all(map(isfinite, bounds))]
        if len(seen) > 1:
            upper = _steps([(px(curve.x[i]), py(curve.high[i])) for i in seen])
            lower = _steps([(px(curve.x[i]), py(curve.low[i])) for i in seen])
            band = " ".join(f"{x:g},{y:g}" for x, y in [*upper, *reversed(lower)])
            parts.append(f'<polygon points="{band}" fill="{colour}" fill-opacity="0.13"/>')
        line = " ".join(f"{x:g},{y:g}" for x, y in _steps([(px(curve.x[i]), py(curve.middle[i])) for i in seen]))
        parts.append(f'<polyline points="{line}" fill="none" {style}/>')
        y = TOP + 8 + 18 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 14} {y}h22" {style}/>')
        parts.append(text(WIDTH - RIGHT + 42, y + 4, curve.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A best holds until there is a better one: corners in place of slopes, and none where nothing changes."""
    found: list[tuple[float, float]] = []
    for x, y in points:
        if found and found[-1][1] != y:
            found.append((x, found[-1][1]))
        if not found or found[-1] != (x, y):
            found.append((x, y))
    return [
        point
        for i, point in enumerate(found)
        if i in (0, len(found) - 1) or not found[i - 1][1] == point[1] == found[i + 1][1]
    ]
