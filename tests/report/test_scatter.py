"""Predicted over published as SVG: well formed, every point at its place, and text is text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.report.scatter import LEFT, SIDE, TOP, WIDTH, draw

SVG = "{http://www.w3.org/2000/svg}"


def marks(text: str) -> list[list[tuple[float, float]]]:
    """Of every set in turn, where its marks stand."""
    paths = ElementTree.fromstring(text).iter(f"{SVG}path")
    drawn = [path.get("d") or "" for path in paths if path.get("fill-opacity")]
    return [[(float(x), float(y)) for x, y in re.findall(r"M(\d+) (\d+)", path)] for path in drawn]


def row(name: str, published: float, predicted: float) -> dict[str, Any]:
    return {"set": name, "published": published, "predicted": predicted}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), *[st.floats(1e-12, 1e12) | st.just(0.0)] * 2), max_size=30))
def test_every_set_is_named_and_every_point_in_the_frame(values):
    rows = [row(f"<set&{name}>", *pair) for name, *pair in values]
    text = draw(rows, "a & <b>")
    names = [label.text for label in ElementTree.fromstring(text).iter(f"{SVG}text")]
    sets = list(dict.fromkeys(r["set"] for r in rows))
    assert names[0] == "a & <b>" and [name for name in names if name and name.startswith("<set")] == sets
    for name, found in zip(sets, marks(text), strict=True):
        shown = [r for r in rows if r["set"] == name and r["published"] > 0 and r["predicted"] > 0]
        assert bool(found) == bool(shown) and len(found) <= len(shown)
        assert all(LEFT <= x <= LEFT + SIDE and TOP <= y <= TOP + SIDE for x, y in found)


def test_the_right_prediction_is_on_the_diagonal_too_much_above_it():
    right, much, little = marks(draw([row("a", 2, 2), row("b", 2, 3), row("c", 2, 1)], "latency_s"))
    assert right[0][0] - LEFT == TOP + SIDE - right[0][1]
    assert much[0][1] < right[0][1] < little[0][1] and much[0][0] == right[0][0] == little[0][0]


def test_what_falls_on_one_pixel_is_drawn_once():
    (found,) = marks(draw([row("a", 1.0, 1.0), row("a", 1.0 + 1e-9, 1.0), row("a", 9.0, 9.0)], "latency_s"))
    assert len(found) == 2


def test_it_is_drawn_by_a_browser(browser: Any, tmp_path: Path):
    path = tmp_path / "a.svg"
    path.write_text(draw([row("one", 1e-3, 1.1e-3), row("host-avx2_cells_resnet20", 1e-6, 1e-6)], "latency_s"))
    page = browser.new_page()
    page.goto(path.as_uri())
    boxes = [shape.bounding_box() for shape in page.locator("path[fill-opacity]").all()]
    assert len(boxes) == 2 and all(5 <= box["width"] <= 9 and 5 <= box["height"] <= 9 for box in boxes)
    name = page.locator("text", has_text="host-avx2_cells_resnet20").bounding_box()
    assert boxes[0]["x"] < name["x"] and name["x"] + name["width"] <= WIDTH
    page.close()
