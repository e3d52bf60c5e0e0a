"""haqsearch hw measure: timings never decide a test, what is written and resumed does."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import hwmodels
from haqsearch.cli.hw.measure import Settings
from hwmodels import timing
from hwmodels.table import Shape, read

QUICK = ["--bits", "4,8", "--policies", "2", "--seconds", "0.01", "--backend", "reference"]


@pytest.fixture(scope="module")
def _once() -> dict:
    return {}


@pytest.fixture
def measured(call, tmp_path_factory, _once):
    """A folder in which a small network was measured, and what the command said."""
    if not _once:
        folder = tmp_path_factory.mktemp("measured")
        result = call(
            "hw", "measure", "digits_cnn", "--input", "1x8x8", "--out", "mine.toml", *QUICK, "--json", cwd=folder
        )
        assert result.code == 0, result.err
        _once.update(folder=folder, said=json.loads(result.out))
    return _once["folder"], _once["said"]


def test_every_layer_at_every_pair_of_widths(measured):
    folder, said = measured
    table = read(folder / "mine.csv")
    layers = {row.layer for row in table.rows}
    assert len(layers) > 5 and len(table.rows) == 4 * len(layers) == said["rows"] == said["measured"]
    cells = {(row.layer, row.choice.weight.width, row.choice.activation.width) for row in table.rows}
    assert cells == {(layer, w, a) for layer in layers for w in (4, 8) for a in (4, 8)}
    assert all(0 < row.latency_min_s <= row.latency_s * (1 + 1e-9) or row.latency_min_s < 1e-3 for row in table.rows)
    assert said["not_timed"] == []


def test_the_device_it_makes_gives_the_table_back(measured):
    folder, _ = measured
    device = hwmodels.load(folder / "mine.toml")
    assert not device.draft and "reference kernels" in device.profile.sources[0]
    for row in read(folder / "mine.csv").rows:
        cost = device.cost(row.shape.layer(), row.choice, row.batch)
        assert cost.source.startswith("measured mine.csv")
        assert Shape.of(row.shape.layer()) == row.shape


def test_whole_networks_are_held_against_the_sums(measured):
    folder, said = measured
    with (folder / "mine_networks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and all(float(row["latency_s"]) > 0 for row in rows)
    layers = {row.layer for row in read(folder / "mine.csv").rows}
    assert all(len(row["weight_bits"].split()) == len(layers) for row in rows)
    networks = said["networks"]
    expected = [p / m - 1 for p, m in zip(networks["predicted_s"], networks["measured_s"], strict=True)]
    assert networks["errors"] == pytest.approx(expected)
    assert networks["max_error"] == max(map(abs, expected))


def test_what_is_there_is_not_measured_again(call, measured, tmp_path):
    """A command that was stopped goes on: the rows that are left stay as they are, the others are added."""
    folder, _ = measured
    lines = (folder / "mine.csv").read_text().splitlines(keepends=True)
    (tmp_path / "mine.toml").write_text((folder / "mine.toml").read_text())
    (tmp_path / "mine.csv").write_text("".join(lines[:-3]))
    result = call(
        "hw", "measure", "digits_cnn", "--input", "1x8x8", "--out", "mine.toml", *QUICK, "--json", cwd=tmp_path
    )
    assert result.code == 0, result.err
    layers = (len(lines) - 1) // 4
    assert json.loads(result.out)["measured"] == layers  # the pair of widths that was stopped in the middle
    now = (tmp_path / "mine.csv").read_text().splitlines(keepends=True)
    assert now[:-layers] == lines[:-layers] and len(now) == len(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_cnn", "--input", "8by8"], "--input 8by8: write the shape"),
        (["digits_cnn", "--input", "3x8x8"], "does not take samples of shape (3, 8, 8)"),
        (["digits_cnm", "--input", "1x8x8"], "did you mean 'digits_cnn'"),
        (["digits_cnn", "--input", "1x8x8", "--bits", "1,9"], "--bits 1,9: write widths from 2 to 8"),
        (["digits_cnn", "--input", "1x8x8", "--statistic", "mode"], "write median or least"),
        (["digits_cnn", "--input", "1x8x8", "--out", "host.csv"], "a device file ends in .toml"),
        (["digits_cnn", "--input", "1x8x8", "--out", "other.toml"], "other.toml: is another device"),
        (["digits_cnn", "--input", "1x8x8", "--out", "lonely.toml"], "there is a lonely.csv beside it"),
        (["digits_cnn", "--input", "1x8x8", "--backend", "abacus"], "no kernel backend 'abacus'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(call, tmp_path, arguments, message):
    (tmp_path / "other.toml").write_text('sources = ["somewhere else"]')
    (tmp_path / "lonely.csv").write_text("op\n")
    threads = torch.get_num_threads()
    result = call("hw", "measure", *arguments, cwd=tmp_path)
    assert result.code == 2 and message in result.err
    assert torch.get_num_threads() == threads
    assert {path.name for path in tmp_path.iterdir()} == {"other.toml", "lonely.csv"}


def test_settings_that_differ_do_not_compare():
    one = Settings("native", "avx512", "cpu", 1, 1, "median")
    assert "1 thread, batch 1" in one.text and "avx512" in one.text
    texts = {one.text, Settings("native", "avx2", "cpu", 1, 1, "median").text}
    texts |= {
        Settings("native", "avx512", "cpu", 2, 1, "median").text,
        Settings("native", "avx512", "cpu", 1, 8, "median").text,
    }
    assert len(texts | {Settings("native", "avx512", "cpu", 1, 1, "least").text}) == 5


def test_a_noisy_call_is_run_until_the_patience_ends(monkeypatch):
    """Time is a clock of our own here: every other run takes twice as long, so the quartiles never meet."""
    clock = iter(range(10**6))
    state = {"now": 0.0}

    def run():
        state["now"] += 1.0 + next(clock) % 2

    patience = timing.Patience(least=5, most=12, spread=0.05, seconds=1e9)
    monkeypatch.setattr(timing, "perf_counter", lambda: state["now"])
    (noisy,) = timing.time_calls([run], patience)
    (quiet,) = timing.time_calls([lambda: state.update(now=state["now"] + 2.0)], patience)
    assert len(noisy) == 12 and not patience.settled([noisy])
    assert quiet == [2.0] * 5 and patience.settled([quiet])


def test_when_runs_agree():
    median, least = timing.Patience(), timing.Patience(statistic="least")
    busy = [1.0, 1.01, 1.02, 2.0, 3.0, 4.0, 5.0]
    assert least.settled([busy]) and not median.settled([busy])
    assert not least.settled([[1.0, 1.2, 1.4, 1.4]])
    # Of a difference, what is uncertain is held against the difference, not against the runs.
    assert not least.settled([busy, [t + 0.1 for t in busy]])
    assert least.settled([busy, [t + 1.0 for t in busy]])
