"""haqsearch hw: list, show, check, new, compare."""

from __future__ import annotations

import json
import re

import pytest

import hwmodels
from haqsearch.report.page import inline_json

BOARD = """
schema = 1
name = "board"
summary = "Bit-serial array"
sources = ["data sheet"]
clock = { frequency_hz = 100e6 }
precision = { weight_bits = [2, 4, 8], activation_bits = [2, 4, 8], unsupported = "error" }
compute = { kind = "bit_serial", rows = 4, columns = 4, word_bits = 64, depthwise_channels_per_word = 4 }
energy = { core_pj_per_bit_mac = 1.0, dram_pj_per_bit = 20.0 }
memory.activation_port_bits_per_cycle = 64
memory.weight_port_bits_per_cycle = 64
memory.activation_buffer_bytes = 65536
memory.weight_buffer_bytes = 65536
"""


def test_list_has_every_device(call, tmp_path):
    found = json.loads(call("hw", "list", "--json", cwd=tmp_path).out)
    assert [device["name"] for device in found] == list(hwmodels.list_profiles())
    table = call("hw", "list", cwd=tmp_path).out
    assert all(name in table for name in hwmodels.list_profiles())


def test_show_has_the_peaks_of_the_paper(call, tmp_path):
    """16 x 32 fusion units at 500 MHz: 256 GMAC/s at 8 bits, 16 times that at 2; 12 GB/s to DRAM."""
    found = json.loads(call("hw", "show", "bitfusion-16x32", "--json", cwd=tmp_path).out)
    roofs = {(r["weight_bits"], r["activation_bits"]): r for r in found["roofs"]}
    assert roofs[8, 8]["peak_macs_per_s"] == pytest.approx(256e9)
    assert roofs[2, 2]["peak_macs_per_s"] == pytest.approx(4096e9)
    assert found["bandwidth_bytes_per_s"] == pytest.approx(12e9)
    assert roofs[8, 8]["ridge_macs_per_byte"] == pytest.approx(256 / 12)
    assert found["sources"] and not found["draft"]


@pytest.mark.parametrize("name", hwmodels.list_profiles())
def test_show_of_every_device_fits_the_terminal(call, tmp_path, name):
    result = call("hw", "show", name, cwd=tmp_path)
    assert result.code == 0, result.err
    picture = [line for line in result.out.splitlines() if line.startswith(("|", "+", " "))]
    assert all(len(line) <= 80 for line in picture)
    assert "source: " in result.out


def test_show_draws_a_page_that_needs_no_network(call, tmp_path):
    (tmp_path / "board.toml").write_text(BOARD.replace("Bit-serial array", "<script>alert(1)</script>"))
    assert call("hw", "show", "board.toml", "--html", "roof.html", cwd=tmp_path).code == 0
    text = (tmp_path / "roof.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "default-src 'none'" in text
    assert inline_json("w8a8")[1:-1] in text


def test_check_of_a_good_file_and_a_draft(call, tmp_path):
    (tmp_path / "board.toml").write_text(BOARD)
    result = call("hw", "check", "board.toml", cwd=tmp_path)
    assert (result.code, result.out) == (0, "board.toml: can be used; no warnings\n")
    (tmp_path / "board.toml").write_text(BOARD.replace('sources = ["data sheet"]', ""))
    found = json.loads(call("hw", "check", "board.toml", "--json", cwd=tmp_path).out)
    assert found["draft"] and any("draft" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("100e6", "100", "clock.frequency_hz is 100: no machine we know"),
        ("core_pj_per_bit_mac = 1.0", "core_pj_per_bit_mac = 1e9", "energy of a MAC in joule is"),
        ("rows = 4, columns = 4", "rows = 1048576, columns = 65536", "peak in MAC/s is"),
    ],
)
def test_check_warns_of_numbers_that_no_machine_has(call, tmp_path, old, new, warning):
    assert old in BOARD
    (tmp_path / "board.toml").write_text(BOARD.replace(old, new))
    result = call("hw", "check", "board.toml", cwd=tmp_path)
    assert result.code == 0 and warning in result.out


def test_check_warns_where_fewer_bits_are_slower(call, tmp_path):
    result = call("hw", "check", "cortex-m7", cwd=tmp_path)
    assert "latency_s rises with fewer bits in" in result.out
    assert "rises" not in call("hw", "check", "bitfusion", cwd=tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "bitfussion"], "did you mean"),
        (["check", "no.toml"], "no.toml: cannot read this device profile"),
        (["check", "bad.toml"], "clock.frequency_hz = -1.0: should be greater than 0"),
        (["new", "--from", "nothing"], "--from nothing: no such device"),
        (["new", "--from", "bitfusion", "--out", "bad.toml"], "bad.toml: there is a file already"),
        (["new", "--from", "bitfusion", "--out", "mine.txt"], "a device file ends in .toml"),
        (["nonsense"], "No such command"),
        (["compare", "bad.toml", "--metric", "speed"], "--metric speed: there are latency_s"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(call, tmp_path, arguments, message):
    (tmp_path / "bad.toml").write_text(BOARD.replace("100e6", "-1.0"))
    result = call("hw", *arguments, cwd=tmp_path)
    assert result.code == 2 and message in result.err
    assert result.err.count("\n") == 1 and result.err.startswith("haqsearch: ")


@pytest.mark.parametrize("base", hwmodels.list_profiles())
def test_a_new_device_is_a_draft_of_the_same_machine(call, tmp_path, base):
    assert call("hw", "new", "--from", base, "--out", "mine.toml", cwd=tmp_path).code == 0
    device = hwmodels.load(tmp_path / "mine.toml")
    assert device.name == "mine" and device.draft
    text = (tmp_path / "mine.toml").read_text()
    assert base in text.splitlines()[0]
    assert not re.search(r"^\[table\]", text, re.MULTILINE)


def test_compare_is_the_costs_of_every_policy_on_every_device(call, project):
    """HAQ's table 1: the devices can follow --hardware as in a list, or each have its own."""
    result = call(
        "hw", "compare", "my.toml", "--policy", "uniform:w4a4", "--policy", "uniform:w3a8",
        "--hardware", "bismo-edge", "bitfusion", "board.toml", "--json", cwd=project,
    )  # fmt: skip
    assert result.code == 0, result.err
    cells = json.loads(result.out)["policies"]
    assert [list(row) for row in cells.values()] == [["bismo-edge", "bitfusion", "board"]] * 2
    alone = json.loads(
        call("cost", "my.toml", "--policy", "uniform:w4a4", "--hardware", "bitfusion", "--json", cwd=project).out
    )
    assert cells["uniform:w4a4"]["bitfusion"]["value"] == alone["metrics"]["latency_s"]
    assert cells["uniform:w3a8"]["board"]["value"] is None
    assert "cannot run at" in cells["uniform:w3a8"]["board"]["why"]
    table = call("hw", "compare", "my.toml", "--hardware", "bismo-edge", "--hardware", "bitfusion", cwd=project).out
    assert "(1.000)" in table and "bitfusion" in table


def test_validate_writes_rows_table_and_scatter_plot(call, tmp_path):
    result = call("hw", "validate", "cortex-m7", "--out", "out", "--html", "page.html", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["held"] and {s["set"] for s in found["sets"]} == {"stm32h7_convolutions", "stm32h7_depthwise"}
    assert all(row["error"] == row["predicted"] / row["published"] - 1 for row in found["rows"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "validation.csv", "validation.md", "validation-latency_s.svg",
    }  # fmt: skip
    assert "(validation-latency_s.svg)" in (tmp_path / "out" / "validation.md").read_text()
    page = (tmp_path / "page.html").read_text()
    assert "stm32h7_depthwise" in page and "default-src 'none'" in page
    table = call("hw", "validate", "cortex-m7", cwd=tmp_path).out
    assert "held   stm32h7_depthwise cortex-m7 latency_s: max <= 2%" in table


def test_validate_says_by_its_exit_code_that_a_target_is_missed(call, tmp_path, monkeypatch):
    from hwmodels import validate

    monkeypatch.setattr(validate, "TARGETS", (validate.Target("stm32h7_depthwise", "max", 1e-6),))
    result = call("hw", "validate", "stm32h7_depthwise", cwd=tmp_path)
    assert result.code == 1 and "MISSED stm32h7_depthwise" in result.out
    assert call("hw", "validate", "cortex-m9", cwd=tmp_path).code == 2
