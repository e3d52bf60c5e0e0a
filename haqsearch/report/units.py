"""Numbers as people read them. Everything here returns plain text; nothing is HTML-escaped yet."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from haqsearch.spec import METRICS

MISSING = "–"
MINUS = "−"
TIMES = "×"
_SHORT = {
    "latency_s": "Latency",
    "energy_j": "Energy",
    "size_bytes": "Size",
    "peak_activation_bytes": "Peak activations",
    "bops": "Bit operations",
}


def finite(value: Any) -> float | None:
    """``value`` as a float, or None where it is missing, not a number, NaN or infinite."""
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def title(metric: str) -> str:
    """Short name of a metric (``Latency``); a metric this version does not know keeps its own name."""
    return _SHORT.get(metric, metric)


def describe(metric: str) -> str:
    """What the metric counts, as ``spec.METRICS`` says it."""
    return METRICS[metric].title if metric in METRICS else metric


def scale(metric: str, magnitude: float) -> tuple[float, str]:
    """Factor and name of the decimal unit that shows ``magnitude`` (base unit) with the fewest zeros."""
    if metric not in METRICS:
        return 1.0, ""
    units = sorted((size, name) for name, size in METRICS[metric].units.items() if "iB" not in name)
    fitting = [unit for unit in units if unit[0] <= abs(magnitude) * (1 + 1e-12)] or units[:1]
    size, name = fitting[-1]
    return size, name.replace("u", "µ")


def axis_scale(metric: str, values: Iterable[float | None]) -> tuple[float, str]:
    """One unit for a whole axis or column: that of its largest value."""
    return scale(metric, max((abs(v) for v in values if v is not None), default=0.0))


def decimal(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, never in exponent form between 1e-4 and 1e15."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def human(metric: str, value: float | None) -> str:
    """``0.00123`` latency_s as ``1.23 ms``."""
    if value is None:
        return MISSING
    size, unit = scale(metric, value)
    return f"{decimal(value / size)} {unit}".strip()


def exact(metric: str, value: float | None) -> str:
    """The stored value, all digits, in the metric's base unit."""
    if value is None:
        return "no value"
    number = f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)
    return f"{number} {METRICS[metric].base_unit if metric in METRICS else ''}".strip()


def percent(value: float | None, places: int = 2) -> str:
    """``0.9142`` as ``91.42 %``."""
    return MISSING if value is None else f"{100 * value:.{places}f} %".replace("-", MINUS)


def points(value: float | None) -> str:
    """A difference of two accuracies, with its sign: ``-0.0025`` as ``−0.25 pts`` (percentage points)."""  # noqa: RUF002
    if value is None:
        return MISSING
    sign = MINUS if round(value, 6) < 0 else "+" if round(value, 6) > 0 else "±"
    return f"{sign}{100 * abs(value):.2f} pts"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def plural(number: int, one: str, many: str) -> str:
    """``1 policy``, ``2 policies``."""
    return f"{count(number)} {one if number == 1 else many}"


def compact(value: float | None) -> str:
    """A large count in k, M or G."""
    if value is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{decimal(value / size)} {unit}"
    return f"{value:g}"


def duration(seconds: float | None) -> str:
    """Wall time: ``45 ms``, ``3.2 s``, ``4 min 12 s``, ``1 h 12 min``."""
    if seconds is None:
        return MISSING
    if seconds < 1:
        return f"{1e3 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def wilson(share: float | None, samples: float | None) -> tuple[float, float] | None:
    """95 % interval of a share counted on ``samples`` [Wilson 1927]; None where either is unknown."""
    if share is None or not samples or samples < 1 or not 0 <= share <= 1:
        return None
    z = 1.959964
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2)) / (1 + z * z / samples)
    return max(0.0, centre - half), min(1.0, centre + half)
