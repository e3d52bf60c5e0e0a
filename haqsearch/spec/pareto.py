"""Dominance between points to be minimised in every coordinate."""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """True if ``a`` is nowhere worse than ``b`` and somewhere better (smaller is better)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, in the order given; of equal points the first stays."""
    kept: list[int] = []
    for i, point in enumerate(points):
        beaten = any(dominates(other, point) for other in points)
        repeated = any(list(points[j]) == list(point) for j in kept)
        if not beaten and not repeated:
            kept.append(i)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume dominated by ``points`` up to ``reference``, by slicing along the last coordinate (exact, any dimension)."""
    inside = [tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    inside.sort(key=lambda p: p[-1])
    heights = [p[-1] for p in inside] + [reference[-1]]
    return sum(
        (heights[i + 1] - heights[i]) * hypervolume([p[:-1] for p in inside[: i + 1]], reference[:-1])
        for i in range(len(inside))
    )
