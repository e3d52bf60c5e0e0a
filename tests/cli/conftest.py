"""The command as a user calls it: ``command`` in a process of its own, ``call`` in this one, which spares the imports."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from hwmodels.profile import PROFILES

HAQSEARCH = [sys.executable, "-c", "from haqsearch.cli import main; main()"]
# One thread: the same network is trained, and the same policies are found, on every machine and beside other tests.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
EVALUATIONS = 12

DIGITS = f"""
model    = "digits_cnn"
data     = "digits"
hardware = "bismo-edge"
objective = "kl"
budget   = ["latency_s <= 0.6 * int8", "size_bytes <= 36 kB"]
agent    = "ddpg"
weight_bits     = [2, 4, 6, 8]
activation_bits = [4, 6, 8]
max_evaluations = {EVALUATIONS}
split = {{ calibrate = 64, search = 100, report = 200 }}
qat   = {{ candidates = 1, steps = 10 }}
train = {{ epochs = 3 }}
"""

MY_NET = """
import torch
from sklearn.datasets import load_digits
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.body = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


def build():
    return Net()


def load():
    digits = load_digits()
    return digits.images[:400, None].astype("float32") / 8 - 1, digits.target[:400]
"""

RECIPE = """
model    = "my_net:build"
weights  = "my.safetensors"
data     = "my_net:load"
hardware = "bismo-edge"
objective = "kl"
budget   = ["latency_s <= 0.7 * int8"]
agent    = "tpe"
weight_bits     = [2, 4, 8]
activation_bits = [2, 4, 8]
fixed    = { head = "w8a8" }
max_evaluations = 6
split = { calibrate = 32, search = 64, report = 64 }
qat   = { candidates = 0 }
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def command(*arguments: str | Path, cwd: Path) -> Result:
    """``haqsearch ARGUMENTS`` in a process of its own."""
    done = subprocess.run(
        [*HAQSEARCH, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """``haqsearch ARGUMENTS`` in this process, from the folder ``cwd``; what it imports from there is forgotten."""
    from haqsearch.cli import main

    users = str(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str | Path, cwd: Path) -> Result:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["haqsearch", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
        forget_modules(users)
        return Result(int(end.value.code or 0), out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def my_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``my.safetensors``: MY_NET after a second of training."""
    import torch
    from safetensors.torch import save_file

    space: dict = {}
    exec(MY_NET, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = space["build"]()
    images, labels = map(torch.as_tensor, space["load"]())
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "my.safetensors"
    save_file(model.state_dict(), str(path))
    return path


def forget_modules(folder: str) -> None:
    """Modules of a user's, imported from anywhere in ``folder``, are to be imported again: the next test has others."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path, my_weights: Path) -> Iterator[Path]:
    """A user's folder: a recipe; beside it the module and the weights that it names, and a board of 2, 4 and 8 bits."""
    (tmp_path / "my.toml").write_text(RECIPE)
    (tmp_path / "my_net.py").write_text(MY_NET)
    shutil.copy(my_weights, tmp_path)
    device = (PROFILES / "bismo-edge.toml").read_text().replace('"bismo-edge"', '"board"')
    (tmp_path / "board.toml").write_text(device.replace("[1, 2, 3, 4, 5, 6, 7, 8]", "[2, 4, 8]"))
    yield tmp_path
    forget_modules(str(tmp_path))


@dataclass(frozen=True)
class Finished:
    """A finished run of DIGITS. ``copy`` gives one that may be changed."""

    base: Path
    result: Result

    @property
    def recipe(self) -> Path:
        return self.base / "searches" / "digits.toml"

    @property
    def folder(self) -> Path:
        return self.base / "results" / "digits"

    def copy(self, to: Path, only: Sequence[str] = ()) -> Path:
        if only:
            to.mkdir()
            for name in only:
                shutil.copy(self.folder / name, to)
            return to
        return Path(shutil.copytree(self.folder, to))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    base = tmp_path_factory.mktemp("finished")
    (base / "searches").mkdir()
    (base / "searches" / "digits.toml").write_text(DIGITS)
    result = command("run", "searches/digits.toml", cwd=base)
    assert result.code == 0, result.err
    return Finished(base, result)


def trials(folder: Path) -> list[dict]:
    """Rows of ``trials.parquet``, by number."""
    import pandas as pd

    return pd.read_parquet(folder / "trials.parquet").sort_values("number").to_dict("records")
