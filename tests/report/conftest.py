from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haqsearch.report import write_report

from .folders import write_run

HOSTILE = {
    "conv1": "</script><script>alert('name')</script>",
    "layer1.0.conv1": "<img src=x onerror=alert(2)>",
    "layer1.0.conv2": "\"'><svg onload=alert(3)>",
    "layer1.1.conv1": "<!--<script>",
    "layer1.1.conv2": '<a href="javascript:alert(4)">&lt;%{x}$body ${css} \\u003c</a>',
    "layer1.2.conv1": "line\u2028separator\x00\x07 </style></title>",
    "layer1.2.conv2": "features.17.conv.0.depthwise_block_with_a_name_longer_than_any_screen.conv2",
}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def report(run_folder: Path) -> Path:
    return write_report(run_folder)


@pytest.fixture(scope="session")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text tries to leave the place it is put in."""
    bad = HOSTILE["conv1"]
    folder = write_run(
        tmp_path_factory.mktemp("hostile"),
        names=HOSTILE,
        name=bad,
        model=bad,
        data=HOSTILE["layer1.0.conv1"],
        agent=bad,
        hardware={"name": bad, "summary": HOSTILE["layer1.0.conv2"], "batch": 1},
        notes=list(HOSTILE.values()),
        seconds={bad: 1.0},
        uniform={"policy": bad, "accuracy": 0.9},
        fidelity=bad,
    )
    (folder / "environment.json").write_text('{"haqsearch": "<b onclick=alert(5)>", "<i>": {"a": "</script>"}}')
    return write_report(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to open the report in a browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium on the PATH to open the report in")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()
