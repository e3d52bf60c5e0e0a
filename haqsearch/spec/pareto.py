"""Dominance between points to be minimised in every coordinate."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """True if ``a`` is nowhere worse than ``b`` and somewhere better (smaller is better)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, in the order given; of equal points the first stays."""
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: tuple(points[i])):  # only what comes before can dominate
        if not any(all(x <= y for x, y in zip(points[j], points[i], strict=True)) for j in kept):
            kept.append(i)
    return sorted(kept)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Volume dominated by ``points`` up to ``reference``: exact, any dimension; 300 points of 3 in a few milliseconds.

    Slices along the last coordinate. What stands in a slice is the front of the points at or below it, so a point that
    adds nothing there costs nothing, and in two dimensions a slice is a staircase whose area grows point by point.
    """
    inside = [tuple(p) for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    if len(reference) == 2:
        stairs = _Staircase(reference)
        return max(map(stairs.add, inside))
    inside.sort(key=lambda p: p[-1])
    slice_: _Slice = _Staircase(reference[:2]) if len(reference) == 3 else _Front(reference[:-1])
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum((end - p[-1]) * slice_.add(p[:-1]) for p, end in zip(inside, ends, strict=True))


class _Staircase:
    """The front of points of two coordinates, x rising and y falling, with the area it dominates."""

    def __init__(self, reference: Point) -> None:
        self.x: list[float] = []
        self.y: list[float] = []
        self.reference = reference
        self.area = 0.0

    def add(self, point: Point) -> float:
        """The area with ``point``, which lies below the reference in both coordinates."""
        x, y = point
        last = bisect_right(self.x, x)  # the steps before it begin at or left of the point
        height = self.y[last - 1] if last else self.reference[1]
        if height <= y:
            return self.area
        first = last - 1 if last and self.x[last - 1] == x else last
        left, end = x, last
        while end < len(self.x) and self.y[end] >= y:  # the steps it covers, each with what stood above it
            self.area += (self.x[end] - left) * (height - y)
            left, height = self.x[end], self.y[end]
            end += 1
        right = self.x[end] if end < len(self.x) else self.reference[0]
        self.area += (right - left) * (height - y)
        self.x[first:end], self.y[first:end] = [x], [y]
        return self.area


class _Front:
    """The front of points of three coordinates or more, with the volume it dominates."""

    def __init__(self, reference: Point) -> None:
        self.points: list[Point] = []
        self.reference = reference
        self.volume = 0.0

    def add(self, point: Point) -> float:
        """The volume with ``point``: what it alone covers is its box less what the others cover of that box."""
        if any(other == point or dominates(other, point) for other in self.points):
            return self.volume
        box = 1.0
        for x, r in zip(point, self.reference, strict=True):
            box *= r - x
        cut = [tuple(map(max, other, point)) for other in self.points]
        self.volume += box - hypervolume([cut[i] for i in front(cut)], self.reference)
        self.points = [other for other in self.points if not dominates(point, other)] + [point]
        return self.volume


_Slice = _Staircase | _Front
