from __future__ import annotations

import itertools
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.spec import dominates, front, hypervolume

coordinate = st.integers(0, 6)  # few values, so that equal and dominated points are common


def clouds(dimension, most=8):
    return st.lists(st.tuples(*[coordinate] * dimension), max_size=most)


any_cloud = st.integers(1, 3).flatmap(clouds)


@given(clouds(3, 3))
def test_dominance_is_a_strict_partial_order(points):
    for a, b, c in itertools.product(points, repeat=3):
        assert not dominates(a, a)
        assert not (dominates(a, b) and dominates(b, a))
        if dominates(a, b) and dominates(b, c):
            assert dominates(a, c)


@given(any_cloud)
def test_no_point_dominates_a_point_of_the_front(points):
    kept = front(points)
    assert not any(dominates(p, points[i]) for p in points for i in kept)
    assert kept == sorted(kept)
    assert len({points[i] for i in kept}) == len(kept)


@given(any_cloud)
def test_every_other_point_is_dominated_by_the_front_or_equal_to_one_of_it(points):
    kept = front(points)
    for p in points:
        assert any(points[i] == p or dominates(points[i], p) for i in kept)


@given(any_cloud, st.randoms())
def test_the_front_does_not_depend_on_the_order(points, random):
    shuffled = random.sample(points, len(points))
    assert {points[i] for i in front(points)} == {shuffled[i] for i in front(shuffled)}


def test_of_equal_points_the_first_stays():
    assert front([(2, 2), (1, 1), (1, 1), (0, 5)]) == [1, 3]
    assert front([]) == []


def _union(points, reference):
    """Volume of a union of boxes by inclusion and exclusion."""
    boxes = [p for p in points if all(x < r for x, r in zip(p, reference, strict=True))]
    total = 0
    for n in range(1, len(boxes) + 1):
        for some in itertools.combinations(boxes, n):
            corner = [max(c) for c in zip(*some, strict=True)]
            total += (-1) ** (n + 1) * prod(r - c for r, c in zip(reference, corner, strict=True))
    return total


@given(st.integers(1, 4).flatmap(lambda d: st.tuples(clouds(d, 6), st.tuples(*[coordinate] * d))))
def test_hypervolume_is_the_volume_of_the_union(case):
    points, reference = case
    assert hypervolume(points, reference) == _union(points, reference)


@pytest.mark.parametrize("dimension", [1, 2, 3])
@given(data=st.data())
def test_hypervolume_counts_the_unit_cells_that_are_dominated(dimension, data):
    points = data.draw(clouds(dimension))
    reference = (6,) * dimension
    cells = itertools.product(range(6), repeat=dimension)
    covered = sum(any(all(x <= c for x, c in zip(p, cell, strict=True)) for p in points) for cell in cells)
    assert hypervolume(points, reference) == covered


@given(st.integers(1, 3).flatmap(lambda d: st.tuples(clouds(d), st.tuples(*[coordinate] * d))))
def test_one_more_point_never_lowers_the_hypervolume(case):
    points, extra = case
    reference = (5,) * len(extra)
    before, after = hypervolume(points, reference), hypervolume([*points, extra], reference)
    assert after >= before
    inside = all(x < r for x, r in zip(extra, reference, strict=True))
    covered = any(p == extra or dominates(p, extra) for p in points)
    assert (after > before) == (inside and not covered)


@given(any_cloud.filter(bool), st.randoms())
def test_only_the_front_counts_and_no_order(points, random):
    reference = (7,) * len(points[0])
    whole = hypervolume(points, reference)
    assert hypervolume([points[i] for i in front(points)], reference) == whole
    assert hypervolume(random.sample(points, len(points)), reference) == whole


def test_hypervolume_of_nothing_is_zero():
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(2.0, 0.0)], (1.0, 1.0)) == 0.0
    assert hypervolume([(1.0, 0.0)], (1.0, 1.0)) == 0.0


@pytest.mark.parametrize("dimension", [2, 3, 4])
def test_a_front_of_hundreds_of_points_is_measured_at_once(dimension):
    """On a sphere, where every point is on the front; the volume under it is known up to the points' spacing."""
    from random import Random

    draw = Random(dimension)
    rays = [[abs(draw.gauss(0, 1)) for _ in range(dimension)] for _ in range(300)]
    points = [tuple(1 - x / sum(y * y for y in ray) ** 0.5 for x in ray) for ray in rays]
    assert front(points) == list(range(300))
    ball = {2: 3.14159, 3: 4.18879, 4: 4.93480}[dimension] / 2**dimension  # of the ball of radius 1, in one orthant
    assert 0.7 * ball < hypervolume(points, (1.0,) * dimension) < ball
    one_by_one = [hypervolume(points[: n + 1], (1.0,) * dimension) for n in range(40)]
    assert one_by_one == sorted(one_by_one)
