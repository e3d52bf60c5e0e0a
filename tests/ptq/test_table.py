"""haqsearch ptq-table: every cell is what evaluate says, and is measured once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from haqsearch.cli import evaluate, ptq_table
from haqsearch.errors import DataError, PolicyError, RecipeError

RECIPE = "searches/digits-bismo-edge.toml"
QUICK = ["--set", "train.epochs=2", "--set", "split.calibrate=96"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with our recipe of the digits, where its network is trained once."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "searches").mkdir()
    shutil.copy(Path(__file__).parents[2] / RECIPE, folder / "searches")
    return folder


@pytest.fixture
def call(folder, monkeypatch):
    monkeypatch.chdir(folder)
    app = typer.Typer()
    app.command("ptq-table")(ptq_table.command)
    app.command("evaluate")(evaluate.command)
    return lambda *arguments: CliRunner().invoke(app, [*arguments, *QUICK], catch_exceptions=True)


def test_a_table_goes_on_where_it_was_and_its_cells_are_those_of_evaluate(call, folder, monkeypatch):
    first = call("ptq-table", RECIPE, "--presets", "plain", "--widths", "w8a8")
    assert first.exit_code == 0, first.exception
    file = folder / "results" / "ptq" / "digits-bismo-edge.json"
    before = json.loads(file.read_text())
    assert before["presets"].keys() == {"plain"} and before["presets"]["plain"]["cells"].keys() == {"w8a8"}

    measured = []
    cell = ptq_table.Table._cell
    monkeypatch.setattr(ptq_table.Table, "_cell", lambda table, *rest: measured.append(rest[1:]) or cell(table, *rest))
    second = call("ptq-table", RECIPE, "--presets", "plain,accurate", "--widths", "w8a8,w3a3")
    assert second.exit_code == 0, second.exception
    after = json.loads(file.read_text())
    assert (
        len(measured) == 3 and after["presets"]["plain"]["cells"]["w8a8"] == before["presets"]["plain"]["cells"]["w8a8"]
    )
    figures = {preset: row["cells"]["w3a3"] for preset, row in after["presets"].items()}
    assert figures["accurate"]["kl"] < figures["plain"]["kl"]
    assert figures["accurate"]["policy"]["wall_s"] > 0 and len(after["environment"]["commit"]) > 0

    page = (folder / "results" / "ptq" / "README.md").read_text()
    for preset, found in figures.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{preset}` |"))
        assert f"{found['accuracy']:.2%}" in row
    fixed = "fixed={" + ", ".join(f'"{layer}"="{text}"' for layer, text in after["fixed"].items()) + "}"
    alone = call(
        "evaluate", RECIPE, "--json", "--policy", "uniform:w3a3", "--set", fixed, "--set", "ptq.preset=accurate"
    )
    said = json.loads(alone.output)
    assert (said["accuracy"], said["policy_digest"]) == (
        figures["accurate"]["accuracy"],
        figures["accurate"]["policy_digest"],
    )


def test_weight_formats_have_rows_beside_the_integers_of_the_same_activations(call, folder):
    widths = "w8a8,w4a8,w3a8,vsq4/uint8,int4:group=16/uint8"
    assert call("ptq-table", RECIPE, "--presets", "plain", "--widths", widths, "--out", "formats").exit_code == 0
    content = json.loads((folder / "formats" / "digits-bismo-edge.json").read_text())
    lines = (folder / "formats" / "README.md").read_text().splitlines()
    cells = content["presets"]["plain"]["cells"]
    assert cells.keys() == set(widths.split(","))
    for pair, row in [
        ("w4a8", "| `int4` | 4 |"),
        ("vsq4/uint8", "| `vsq4` | 4.25 |"),
        ("int4:group=16/uint8", "| `int4:group=16` | 6 |"),
    ]:
        assert any(line.startswith(f"{row} {cells[pair]['accuracy']:.2%} |") for line in lines)
    assert max(cells[pair]["kl"] for pair in ("vsq4/uint8", "int4:group=16/uint8")) < cells["w3a8"]["kl"]
    assert not any("W4A8" in line for line in lines)  # all is in the one table


def test_cells_of_another_recipe_are_left_out(call, folder):
    call("ptq-table", RECIPE, "--presets", "plain", "--widths", "w8a8", "--out", "other")
    call("ptq-table", RECIPE, "--presets", "plain", "--widths", "w4a4", "--out", "other", "--set", "split.search=100")
    content = json.loads((folder / "other" / "digits-bismo-edge.json").read_text())
    assert content["presets"]["plain"]["cells"].keys() == {"w4a4"}


def test_what_is_wrong_is_said(call, folder):
    assert isinstance(call("ptq-table", RECIPE, "--presets", "quick").exception, RecipeError)
    assert isinstance(call("ptq-table", RECIPE, "--widths", "w4").exception, PolicyError)
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "digits-bismo-edge.json").write_text("[]")
    error = call("ptq-table", RECIPE, "--presets", "plain", "--widths", "w8a8", "--out", "spoilt").exception
    assert isinstance(error, DataError) and "delete it, or give --again" in str(error)
