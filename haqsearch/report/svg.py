"""What our plain SVG figures share: no library, no script, and files that a diff can show."""

from __future__ import annotations

import html
from math import ceil, floor, log10

# Okabe-Ito, which differ for most eyes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1C2430", "#8A94A0")
INK, LINE, GRID = "#1C2430", "#8A94A0", "#E8EBEF"


def opening(width: int, height: int) -> str:
    """The first tag, and a white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">\n'
        f'<rect width="{width}" height="{height}" fill="#FFFFFF"/>'
    )


def text(x: float, y: float, text: str, style: str = "") -> str:
    """``text`` at (x, y), escaped; ``style`` is attributes."""
    return f'<text x="{x:g}" y="{y:g}" {style}>{html.escape(text)}</text>'


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between ``low`` and ``high``, which are powers of ten if ``log``."""
    if log:
        decades = range(floor(low), ceil(high) + 1)
        steps = (1, 2, 5) if high - low > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        found = [step * 10.0**decade for decade in decades for step in steps]
        return [value for value in found if low <= log10(value) <= high]
    rough = (high - low) / 6
    size = 10.0 ** floor(log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough)
    return [step * i for i in range(ceil(low / step), floor(high / step) + 1)]
