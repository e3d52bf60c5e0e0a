from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from haqsearch.errors import HaqError
from haqsearch.report import ReportError, write_report
from haqsearch.report.page import inline_json
from haqsearch.report.records import Bits, Layer
from haqsearch.report.tables import _layer_row

from .folders import write_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Texts and element counts of a page; asserts that every element is closed where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.figures: dict[str, Any] = {}
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        assert "src" not in values
        assert "href" not in values
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            if data.startswith('{"'):
                self.figures = json.loads(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)


def change(folder: Path, name: str, **keys: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_page_says_what_the_run_found(report: Path) -> None:
    page = Page(report)
    for text in (
        "✓ Budget met",
        "Accuracy 91.42 %, 0.25 points below float",
        "+0.55 pts w5a6: 90.87 %",
        "latency_s <= 0.62 * int8",
        "95 % CI 90.9–92.0 %",
        "bitfusion-edge",
        "150, 92 within the budget, 1 failed",
        "1 min 11 s",
        "layer3.2.conv2",
        "report split, 10 000 samples",
        "search split, 2 048 samples",
        "predicted, not measured",
        "1 evaluation failed and in no figure; the first: evaluation 15: ModelError: too wide",
        "d544310a9",
        "linear: stays at 8 bits because the recipe pins it",
    ):
        assert text in page.text, text
    assert set(page.figures) == {"bits", "progress"} | {f"{view}-{i}" for view in ("accuracy", "kl") for i in range(5)}
    assert set(page.figures) <= set(page.ids)


def test_the_numbers_of_the_layer_table_are_those_of_the_policy(run_folder: Path, report: Path) -> None:
    policy = json.loads((run_folder / "policy.json").read_text())
    bars = Page(report).figures["bits"]["data"]
    assert bars[0]["y"] == [int(layer["weight"][3:]) for layer in policy["layers"].values()]
    assert bars[1]["y"] == [int(layer["activation"][4:]) for layer in policy["layers"].values()]
    whole = sum(row["latency_s"] for row in policy["layer_costs"])
    assert bars[2]["y"] == pytest.approx([100 * row["latency_s"] / whole for row in policy["layer_costs"]])
    assert [shape != "" for shape in bars[0]["marker"]["pattern"]["shape"]] == [
        row["pinned"] for row in policy["layer_costs"]
    ]
    assert f"{policy['layer_costs'][3]['latency_s']!r} s" in report.read_text()


def test_the_report_is_one_file_and_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", trials=10)
    path = write_report(folder)
    assert path == folder / "report.html"
    old = path.read_text()
    assert not re.search(r"<(link|img|iframe|script src)", old[: old.index('<script type="application/json"')])
    files = sorted(folder.iterdir())

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_report(folder)
    assert sorted(folder.iterdir()) == files
    assert path.read_text() == old


def test_the_same_run_gives_the_same_bytes(run_folder: Path, report: Path) -> None:
    first = report.read_bytes()
    assert write_report(run_folder).read_bytes() == first


@pytest.mark.parametrize("name", ["summary.json", "policy.json", "trials.parquet", "pareto.json", "environment.json"])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", trials=10)
    (folder / name).write_bytes(b"\xff{not it")
    with pytest.raises(ReportError, match=rf"{name}: cannot be read as .*run the recipe again"):
        write_report(folder)
    (folder / name).unlink()
    with pytest.raises(HaqError, match=f"{name}: missing"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_a_missing_folder_another_version_and_a_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    folder = write_run(tmp_path / "run", trials=10, schema_version=2)
    with pytest.raises(ReportError, match="schema_version is 2, this version reads 1"):
        write_report(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(ReportError, match="holds a list, not an object"):
        write_report(folder)


def test_nothing_found_is_still_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", trials=10, budget=("size_bytes <= 1 kB",))
    change(
        folder,
        "summary.json",
        accuracy=None,
        int8_accuracy=None,
        uniform=None,
        policy_digest="",
        metrics={},
        evaluations=0,
    )
    change(
        folder,
        "summary.json",
        budget=[{"metric": "size_bytes", "limit": 1000.0, "value": None, "met": False, "text": ""}],
    )
    change(folder, "pareto.json", points=[])
    (folder / "policy.json").unlink()
    pd.read_parquet(folder / "trials.parquet").iloc[:0].to_parquet(folder / "trials.parquet")
    page = Page(write_report(folder))
    assert "✗ Budget not met None of the 0 evaluated policies met every limit." in page.text
    assert "There is no chosen policy to show" in page.text
    assert "The Pareto set is empty" in page.text
    assert page.figures == {}


def test_nan_none_and_infinity_become_dashes_and_gaps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", trials=12)
    nan, inf = float("nan"), float("inf")
    change(
        folder, "summary.json", accuracy=nan, float_accuracy=None, metrics={"latency_s": nan}, seconds={"search": nan}
    )
    policy = json.loads((folder / "policy.json").read_text())
    policy["layer_costs"][2]["latency_s"] = nan
    policy["layer_costs"][3] = {"layer": policy["layer_costs"][3]["layer"]}
    policy["layers"]["layer1.1.conv2"] = {"weight": "float32", "activation": "float32"}
    (folder / "policy.json").write_text(json.dumps(policy))
    frame = pd.read_parquet(folder / "trials.parquet")
    frame["kl"] = frame["kl"].astype(float)
    frame.loc[1, "kl"], frame.loc[2, "accuracy"], frame.loc[3, "latency_s"] = inf, nan, nan
    frame.to_parquet(folder / "trials.parquet")
    page = Page(write_report(folder))
    assert not re.search(r"\b(nan|inf|None)\b", page.text, re.IGNORECASE)
    assert page.figures["bits"]["data"][2]["y"][2] is None
    assert "f32" in page.figures["bits"]["data"][0]["text"]
    assert max(page.figures["bits"]["data"][0]["y"]) == 8  # a float layer does not stretch the axis to 32


def test_other_objectives_and_no_budget(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", trials=12, budget=(), objective="accuracy", seconds={})))
    assert "No budget set" in page.text
    assert "maximises share of samples classified right" in page.text
    assert "kl-0" not in page.figures


def test_inline_json_cannot_leave_its_script() -> None:
    text = inline_json({"a": "</script><!--<script>&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--<script>&\u2028"}


def test_hostile_texts_stay_texts(hostile_report: Path) -> None:
    page = Page(hostile_report)
    assert page.tags.count("script") == 3
    assert page.tags.count("img") == 0
    assert page.tags.count("style") == page.tags.count("title") == 1


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, haqsearch.report; print([m for m in ('plotly', 'pandas', 'torch', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_layer_says_where_fewer_bits_buy_nothing() -> None:
    def row(*operands: str) -> str:
        bits = (Bits.parse("int4"), Bits.parse("uint4"))
        return _layer_row(
            Layer("conv", "conv2d", (1,), (1,), (1,), 1.0, False, "compute", *bits, {}, operands), {}, {}, {}
        )

    assert "⊘" not in row()
    assert "compute ⊘ w<" in row("weight") and "fewer weight bits buy nothing here" in row("weight")
    assert "<b>" not in row("<b>")


def test_the_ladder_is_a_table_and_what_it_pruned_is_in_no_figure(tmp_path: Path) -> None:
    plain = Page(write_report(write_run(tmp_path / "plain", trials=12)))
    rungs = [
        {"samples": 250, "scored": 12, "pruned": 2, "seconds": 1.5, "correlation": 0.93, "kept": True},
        {"samples": 500, "scored": 10, "pruned": 0, "seconds": 2.0, "correlation": 0.41, "kept": False},
        {"samples": None, "scored": 10, "pruned": 0, "seconds": 4.0},
    ]
    folder = write_run(tmp_path / "run", trials=12)
    change(folder, "summary.json", ladder={"rungs": rungs}, pruned_evaluations=2)
    frame = pd.read_parquet(folder / "trials.parquet")
    frame["fidelity"] = ["ptq"] * 10 + ["ptq:250"] * 2
    frame.to_parquet(folder / "trials.parquet")
    page = Page(write_report(folder))
    assert (
        "Samples Policies Pruned Time Rank correlation 250 12 2 1.5 s 0.93 500 10 0 2.0 s 0.41, dropped all"
        in page.text
    )
    assert "2 pruned" in page.text
    assert "Rank correlation" not in plain.text
    points = [
        sum(len(trace["x"]) for trace in p.figures["progress"]["data"] if trace["mode"] == "markers")
        for p in (plain, page)
    ]
    assert points == [12, 10]


def test_the_second_search_is_counted_and_the_page_says_why_its_policy_is_not_marked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", trials=12)
    plain = Page(write_report(folder)).text
    assert "rounded in network order" not in plain and "is not marked" not in plain
    digest = "f" * 16
    change(folder, "policy.json", digest=digest)
    change(folder, "summary.json", policy_digest=digest, refined={"evaluations": 40})
    text = Page(write_report(folder)).text
    assert "; 40 more rounded in network order" in text
    assert "is not marked: the second search found it" in text
