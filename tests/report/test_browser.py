"""The page as a reader meets it: opened from the disk in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from haqsearch.report import write_report
from haqsearch.report.units import TIMES

from .conftest import HOSTILE
from .folders import write_run

SHOWN = ".plots:not([hidden]) .plot, .single .plot"
CHART = f"[...document.querySelectorAll('{SHOWN}')].every(p => p.querySelector('svg.main-svg'))"


@contextmanager
def opened(browser: Any, path: Path, width: int) -> Iterator[tuple[Any, dict[str, list[str]]]]:
    """The drawn page and everything it did that it should not have."""
    seen: dict[str, list[str]] = {"console": [], "dialogs": [], "requests": [], "errors": []}
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: seen["console"].append(message.text))
    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    page.on("request", lambda request: seen["requests"].append(request.url))

    def dialog(box: Any) -> None:
        seen["dialogs"].append(box.message)
        box.dismiss()

    page.on("dialog", dialog)
    page.goto(path.as_uri())
    page.wait_for_function(f"document.documentElement.dataset.ready && {CHART}", timeout=30_000)
    try:
        yield page, seen
    finally:
        page.close()


Opened = Callable[[Path, int], tuple[Any, dict[str, list[str]]]]


@pytest.fixture(scope="module")
def drawn(browser: Any) -> Iterator[Opened]:
    """A page opened once, for all the tests that leave it as they found it: drawing it is what takes the time."""
    with ExitStack() as stack:
        yield cache(lambda path, width: stack.enter_context(opened(browser, path, width)))


def assert_quiet(seen: dict[str, list[str]], path: Path) -> None:
    assert seen == {"console": [], "dialogs": [], "requests": [path.as_uri()], "errors": []}


def assert_fits(page: Any) -> None:
    wide, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= window


@pytest.mark.parametrize("width", [1280, 390])
def test_plots_are_drawn_without_a_network_and_without_sideways_scrolling(
    drawn: Opened, report: Path, width: int
) -> None:
    page, seen = drawn(report, width)
    assert page.locator("#bits .bars .point").count() == 3 * 20  # weights, activations, share of latency
    assert page.locator("#view-accuracy .plot").count() == 5
    assert page.locator("#accuracy-0 .scatterlayer .point").count() == 149 + 1  # one of 150 failed; one star
    assert page.locator("#progress .scatterlayer .point").count() == 149
    names = page.locator("#bits .xtick text").all_text_contents()
    assert names[0] == "conv1"
    assert "layer3.2.conv2" in names
    assert_fits(page)
    assert_quiet(seen, report)


def test_layer_names_are_not_clipped(drawn: Opened, hostile_report: Path) -> None:
    page, _ = drawn(hostile_report, 1280)
    figure = page.locator("#bits svg.main-svg").first.bounding_box()
    for box in page.locator("#bits .xtick text").all():
        place = box.bounding_box()
        assert place["y"] + place["height"] <= figure["y"] + figure["height"] + 1


def test_the_other_axis_is_drawn_when_it_is_asked_for(browser: Any, report: Path) -> None:
    with opened(browser, report, 1280) as (page, seen):
        page.get_by_role("button", name="KL to float").click()
        page.wait_for_selector("#kl-0 .scatterlayer .point")
        assert page.locator("#view-accuracy").is_hidden()
        assert "KL to float" in page.locator("#kl-0 .ytitle").text_content()
        assert page.locator("#kl-4 svg.main-svg").first.bounding_box()["width"] > 300
        assert_fits(page)
        assert_quiet(seen, report)


def test_every_layer_cell_stands_under_its_heading(drawn: Opened, report: Path) -> None:
    page, _ = drawn(report, 1280)
    heads = page.locator(".layers thead th").all_text_contents()
    first = page.locator(".layers tbody tr").first.locator("th, td").all_text_contents()
    row = dict(zip(heads, first, strict=True))
    assert row | {"Size (kB)": ""} == {
        "Layer": "conv1 pinned",
        "W": "8",
        "A": "8",
        "Op": "conv",
        "Input → output": "3x32x32 → 16x32x32".replace("x", TIMES),
        "Weight shape": "16x3x3x3".replace("x", TIMES),
        "Weights": "432",
        "MACs": "442 k",
        "Latency (µs)": "15.1",
        "Energy (µJ)": "0.323",
        "Size (kB)": "",
        "Bound by": "compute",
    }
    assert page.locator(".layers tfoot").locator("th, td").count() == len(heads)


def test_hover_gives_the_exact_cost_and_its_share(drawn: Opened, report: Path) -> None:
    page, _ = drawn(report, 1280)
    page.locator("#bits .trace.bars").first.locator(".point").nth(8).hover(force=True)
    text = page.locator("#bits .hoverlayer").text_content()
    assert "layer2.0.conv2" in text
    assert "of all layers" in text


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_are_shown_and_never_run(drawn: Opened, hostile_report: Path, width: int) -> None:
    page, seen = drawn(hostile_report, width)
    page.locator("#bits .trace.bars").first.locator(".point").nth(0).hover(force=True)
    assert HOSTILE["conv1"] in page.locator("#bits .hoverlayer").text_content()
    assert page.locator("h1").text_content() == HOSTILE["conv1"]
    assert page.locator("main script, main img, main a").count() == 0
    assert page.locator("script").count() == 3
    assert page.locator(".layers tbody tr").nth(1).locator("th").text_content() == HOSTILE["layer1.0.conv1"]
    assert_fits(page)
    assert_quiet(seen, hostile_report)


def test_a_script_that_slipped_through_would_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.html"
    attack = "<main><script>alert(1)</script><img src='data:,x' onerror='alert(2)'>"
    spoiled.write_text(report.read_text().replace("<main>", attack, 1))
    with opened(browser, spoiled, 1280) as (_, seen):
        assert seen["dialogs"] == []
        assert len(seen["console"]) >= 2  # the browser says what it refused


def test_a_run_without_any_feasible_policy_is_drawn(browser: Any, tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run", budget=("latency_s <= 0.02 * int8",), trials=30))
    with opened(browser, path, 390) as (page, seen):
        assert "None of the 30 evaluated policies met every limit" in page.locator(".lead").text_content()
        assert "exceeded" in page.locator("#progress .ytitle").text_content()
        assert_fits(page)
        assert_quiet(seen, path)


TRADED = {"hypervolume": 0.61, "front": 9, "reference": {"kl": 1.5, "latency_s": 2e-3, "energy_j": 1e-5}}


@pytest.mark.parametrize(("metrics", "widths"), [(["latency_s"], [1280]), (["latency_s", "energy_j"], [1280, 390])])
def test_the_front_is_drawn_with_the_numbers_of_pareto_json(
    browser: Any, tmp_path: Path, metrics: list[str], widths: list[int]
) -> None:
    folder = write_run(tmp_path / "run", budget=(), trials=80, tradeoff={**TRADED, "metrics": metrics}, traded=metrics)
    points = json.loads((folder / "pareto.json").read_text())["points"]
    rows = pd.read_parquet(folder / "trials.parquet").dropna(subset="kl")
    beaten = rows[~rows["policy_digest"].isin([p["policy_digest"] for p in points])]
    assert len(points) > 4 and len(beaten) > 20
    path = write_report(folder)
    for width in widths:
        with opened(browser, path, width) as (page, seen):
            for k in range(len(metrics)):
                numbers = page.locator(f"#front-{k} .textpoint").all_text_contents()
                assert sorted(map(int, numbers)) == [p["point"] for p in points]
                assert page.locator(f"#front-{k} .scatterlayer .point").count() == len(points) + len(beaten)
                lines = page.locator(f"#front-{k} .js-line").count()
                assert lines == (1 if len(metrics) == 1 else 0)  # of three dimensions two are shown: no staircase
            assert "Hypervolume 0.6100" in page.locator("main").text_content()
            page.locator("#front-0 .scatterlayer .trace").last.locator(".point").first.hover(force=True)
            assert "point " in page.locator("#front-0 .hoverlayer").text_content()
            assert_fits(page)
            assert_quiet(seen, path)


def test_a_run_of_one_objective_has_no_front_card(drawn: Opened, report: Path) -> None:
    page, _ = drawn(report, 1280)
    assert page.locator("[id^=front-]").count() == 0


def test_printing_narrows_the_plots_to_the_paper(browser: Any, report: Path) -> None:
    with opened(browser, report, 1280) as (page, seen):
        pdf = page.pdf(format="A4", print_background=True)
        assert pdf.startswith(b"%PDF")
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 703, "height": 1000})
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function("document.querySelector('#progress svg.main-svg').getBoundingClientRect().width <= 703")
        assert_fits(page)
        assert_quiet(seen, report)
