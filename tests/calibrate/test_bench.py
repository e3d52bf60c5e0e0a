"""haqsearch bench. Figures are a machine's own; here it is that they are there, and belong together."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from haqsearch.calibrate import OBSERVERS
from haqsearch.cli.bench import group
from haqsearch.cli.bench.machine import BENCHES, _load

QUICK = ["--repeats", "3", "--set", "train.epochs=1", "--set", "split.calibrate=96"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``haqsearch bench ARGUMENTS`` from a folder with our recipe of the digits."""
    (tmp_path / "searches").mkdir()
    recipe = Path(__file__).parents[2] / "searches" / "digits-bismo-edge.toml"
    shutil.copy(recipe, tmp_path / "searches")
    monkeypatch.chdir(tmp_path)
    app = group()
    return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def test_calibrate_for_people_and_for_programs(bench):
    people = bench("calibrate", *QUICK)
    assert people.exit_code == 0, people.output
    assert "calibration / forward pass: " in people.output and "96 images" in people.output
    found = json.loads(bench("calibrate", "searches/digits-bismo-edge.toml", "--json", *QUICK).output)
    assert (found["bench"], found["recipe"], found["images"], found["repeats"]) == (
        "calibrate", "digits-bismo-edge", 96, 3,
    )  # fmt: skip
    assert set(found["observers"]) == set(OBSERVERS)
    low, high = found["ratio"]["quartiles"]
    assert 0 < low <= found["ratio"]["median"] <= high
    assert 0 < found["state_bytes"] < 1e6 and "text" not in found
    if sys.platform == "linux":
        assert 0 <= found["peak_bytes"] < 200e6
    else:
        assert found["peak_bytes"] is None or found["peak_bytes"] >= 0


def test_an_unknown_bench_is_refused(bench):
    found = bench("calibrat")
    assert found.exit_code == 2 and "No such command 'calibrat'" in found.output


def test_every_bench_is_there():
    for place, _ in BENCHES.values():
        assert callable(_load(place))


@pytest.mark.slow
@pytest.mark.data
def test_collecting_for_all_observers_on_resnet20_is_cheap(resnet20_cifar10):
    """Of the limits, 2.5 forward passes and 200 MB with 1,024 images, what 256 can show: all but the ranges."""
    from types import SimpleNamespace

    from haqsearch.cli.bench.calibrate import calibrate
    from haqsearch.models.resnet_cifar import resnet20

    _, splits = resnet20_cifar10
    assembly = SimpleNamespace(splits=splits, network=resnet20().eval(), model_name="resnet20")
    found = calibrate(SimpleNamespace(assembly=lambda: assembly, repeats=5))
    assert found["collect_s"] < 2.5 * found["forward_s"]
    assert found["peak_bytes"] is None or found["peak_bytes"] < 200e6
