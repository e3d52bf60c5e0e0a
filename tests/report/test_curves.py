"""Best-so-far curves as SVG: well formed, inside their frame, and text is text."""

from __future__ import annotations

from math import inf
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.report.curves import HEIGHT, WIDTH, Curve, draw

SVG = "{http://www.w3.org/2000/svg}"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(-1e6, 1e6) | st.just(inf)] * 3), min_size=1, max_size=9), min_size=0, max_size=9
    )
)
def test_whatever_the_values_all_points_are_in_the_frame(curves):
    given = [
        Curve(f"<a&{i}>", range(1, len(c) + 1), *zip(*[sorted(y) for y in c], strict=True))
        for i, c in enumerate(curves)
    ]
    given = [Curve(c.name, c.x, c.low, c.middle, c.high) for c in given]  # sorted: low, middle, high
    root = ElementTree.fromstring(draw(given, "title & <more>", "x", "y"))
    assert {text.text for text in root.iter(f"{SVG}text")} >= {c.name for c in given} | {"title & <more>"}
    lines = list(root.iter(f"{SVG}polyline"))
    assert len(lines) == len(given)
    for shape in [*lines, *root.iter(f"{SVG}polygon")]:
        for point in shape.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT


def test_better_stands_lower_where_small_is_good_and_a_best_is_held():
    curve = Curve("a", [1, 2, 3, 4], [1.0, 1.0, 0.1, 0.1], [1.0] * 4, [1.0] * 4)
    root = ElementTree.fromstring(draw([curve], "t", "x", "y"))
    (line,) = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) == 4, "a step has four corners"
    assert points[0][1] == points[1][1] < points[2][1] == points[3][1]
    assert points[1][0] == points[2][0]
