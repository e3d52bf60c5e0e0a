"""Every mistake ends with one line that says what, where and the mend; exit code 2; no traceback; nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Result

Change = Callable[[Path], None]


def check(result: Result, *fragments: str) -> None:
    assert result.code == 2, (result.code, result.out, result.err)
    assert re.fullmatch(r"haqsearch: [^\n]+\n", result.err), result.err
    assert "Traceback" not in result.out + result.err
    for fragment in fragments:
        assert re.search(fragment, result.err), f"{fragment!r} is not in: {result.err}"


def replace(old: str, new: str, file: str = "my.toml") -> Change:
    def change(project: Path) -> None:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new))

    return change


def recipe(*new: str) -> Change:
    """Lines ``key = value`` in place of the recipe's own lines for these keys."""

    def change(project: Path) -> None:
        keys = {line.partition("=")[0].strip() for line in new}
        kept = [
            line for line in (project / "my.toml").read_text().splitlines() if line.split("=")[0].strip() not in keys
        ]
        (project / "my.toml").write_text("\n".join([*new, *kept]) + "\n")

    return change


def module(source: str) -> Change:
    return lambda project: (project / "my_net.py").write_text(source) and None


def weights(change: Callable[[dict], None]) -> Change:
    def write(project: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(str(project / "my.safetensors"))
        change(state)
        save_file(state, str(project / "my.safetensors"))

    return write


def truncate(name: str) -> Change:
    def change(project: Path) -> None:
        content = (project / name).read_bytes()
        (project / name).write_bytes(content[: len(content) * 2 // 3])

    return change


def cifar(project: Path) -> None:
    """A CIFAR-10 of one image a file, one file of which lost its end."""
    folder = project / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073 if name != "data_batch_3.bin" else 2000))
    recipe('data = "cifar10"')(project)


RECIPES: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (recipe("agnet = 'tpe'"), ["my.toml", "unknown key 'agnet'", "did you mean 'agent'"]),
    "unknown key in a section": (
        recipe("qat = { candidats = 0 }"),
        ["unknown key 'qat.candidats'", "did you mean 'candidates'"],
    ),
    "missing key": (replace("hardware", "# hardware"), ["key 'hardware' is missing"]),
    "not TOML": (recipe("model = "), ["my.toml", "not valid TOML", "line 1"]),
    "not a number": (recipe("max_evaluations = 'many'"), ["max_evaluations = 'many'", "integer"]),
    "negative": (recipe("max_evaluations = -3"), ["max_evaluations = -3", "greater than or equal to 1"]),
    "objective typo": (recipe("objective = 'acuracy'"), ["objective = 'acuracy'", "'accuracy', 'loss', 'kl' or 'logit_mse'"]),
    "wrong unit": (recipe("budget = ['latency_s <= 4 kB']"), ["latency_s <= 4 kB", "unit 'kB'", "'ms'"]),
    "unknown metric": (recipe("budget = ['latncy_s <= 4 ms']"), ["'latncy_s'", "did you mean 'latency_s'"]),
    "no budget": (recipe("budget = []"), ["budget", "at least 1"]),
    "budget relative to what": (recipe("budget = ['latency_s <= 0.5 * int4']"), ["int8", "int4"]),
    "a width no kernel has": (recipe("weight_bits = [4, 9]"), ["weight_bits", "9 bits", "2 to 8"]),
    "no widths": (recipe("weight_bits = []"), ["weight_bits", "at least 1"]),
    "a width the device lacks": (
        recipe("weight_bits = [3]", "hardware = 'board.toml'"),
        ["board", "layer 'stem'", "int3"],
    ),
    "a fixed width the device lacks": (
        recipe("fixed = { head = 'w3a8' }", "hardware = 'board.toml'"),
        ["fixed", "board", "w3a8", "'head'"],
    ),
    "a fixed layer that is not there": (recipe("fixed = { heda = 'w8a8' }"), ["no layer 'heda'", "did you mean 'head'"]),
    "a fixed width that is none": (recipe("fixed = { head = 'eight' }"), ["'eight'", "w4a8"]),
    "unknown model": (recipe("model = 'digit_cnn'"), ["model = 'digit_cnn'", "did you mean 'digits_cnn'"]),
    "unknown data": (recipe("data = 'cifar1O'"), ["data = 'cifar1O'", "did you mean 'cifar10'"]),
    "unknown device": (recipe("hardware = 'bismo-egde'"), ["'bismo-egde'", "did you mean 'bismo-edge'"]),
    "unknown agent": (recipe("agent = 'dpg'"), ["'dpg'", "did you mean 'ddpg'"]),
    "no such device file": (recipe("hardware = 'boards/mine.toml'"), ["boards/mine.toml", "cannot read"]),
    "no such weights": (recipe("weights = 'your.safetensors'"), ["your.safetensors", "no such file", "beside the recipe"]),
    "truncated weights": (truncate("my.safetensors"), ["my.safetensors", "truncated"]),
    "weights of another model": (
        weights(lambda state: state.update({"neck.weight": state.pop("body.weight")})),
        ["my.safetensors", "another model", "'body.weight' is missing"],
    ),
    "weights of another shape": (
        weights(lambda state: state.update({"head.bias": state["head.bias"][:5].clone()})),
        ["my.safetensors", "'head.bias'", r"\(5,\)", r"\(10,\)"],
    ),
    "NaN in weights": (weights(lambda state: state["body.bias"].fill_(float("nan"))), ["'body.bias'", "NaN", "weights file"]),
    "NaN in data": (replace("/ 8 - 1", "/ 0", "my_net.py"), ["my_net:load", "NaN or infinity"]),
    "empty data": (replace("[:400", "[:0", "my_net.py"), ["my_net:load", "empty"]),
    "labels missing": (replace("digits.target[:400]", "digits.target[:300]", "my_net.py"), ["400 inputs", "300 labels"]),
    "empty split": (recipe("split = { calibrate = 32, search = 0 }"), ["split.search = 0", "greater than or equal to 1"]),
    "empty report split": (
        recipe("split = { calibrate = 32, search = 64, report = 0 }"),
        ["split.report = 0", "greater than or equal to 1"],
    ),
    "more for sensitivities than there are": (
        recipe("split = { calibrate = 32, search = 64, sensitivity = 65 }"),
        ["split.sensitivity = 65", "more than the search split has"],
    ),
    "split too large": (recipe("split = { calibrate = 32, search = 4000 }"), ["400 samples", "smaller"]),
    "truncated data file": (cifar, ["data_batch_3.bin", "truncated", "unpack it again"]),
    "no data file": (recipe("data = 'cifar10'"), ["cifar-10-batches-bin", "--data-root"]),
    "unreachable budget": (
        recipe("budget = ['latency_s <= 0.2 * int8']", "fixed = { stem = 'w8a8', body = 'w8a8' }"),
        ["cannot be met", r"least reachable latency_s on bismo-edge is [\d.]+ us", "held up by (stem|body)", r"w8a8"],
    ),
    "budgets that exclude each other": (
        recipe("budget = ['size_bytes <= 1 B', 'latency_s <= 1 * int8']"),
        ["size_bytes <= 1 B", "cannot be met", "least reachable"],
    ),
    "no such module": (recipe("model = 'your_net:build'"), ["'your_net:build'", "cannot be imported", "your_net"]),
    "no such function": (recipe("model = 'my_net:built'"), ["'my_net:built'", "cannot be imported"]),
    "no function": (recipe("model = 'my_net:torch'"), ["'my_net:torch'", "module", "not a function"]),
    "module raises": (module("x = 1\n1 / 0\n"), ["my_net", "ZeroDivisionError", r"my_net.py:2"]),
    "module is no Python": (module("def build(:\n"), ["SyntaxError", "my_net"]),
    "model raises": (replace("return Net()", "raise KeyError('depth')", "my_net.py"), ["KeyError", r"my_net.py:\d+"]),
    "model is none": (replace("return Net()", "return 3", "my_net.py"), ["my_net:build", "int", "torch.nn.Module"]),
    "data raises": (replace("digits = load", "digits = lode", "my_net.py"), ["my_net:load", "NameError", r"my_net.py:\d+"]),
    "data is none": (replace("return digits.images", "return 3; digits.images", "my_net.py"), ["my_net:load", "gives int"]),
    "data of another shape": (
        replace("digits.images[:400, None]", "digits.images[:400]", "my_net.py"),
        ["my_net", r"shape \(2, 8, 8\)", "channels"],
    ),
    "agent raises": (
        lambda project: (recipe("agent = 'my_agent:A'")(project), (project / "my_agent.py").write_text("1 / 0\n")) and None,
        ["my_agent:A", "ZeroDivisionError", "my_agent.py:1"],
    ),
    "agent is none": (recipe("agent = 'my_net:build'"), ["my_net:build", "haqsearch.agents.Agent"]),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_run(project, call, case):
    change, fragments = RECIPES[case]
    change(project)
    kept = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
    check(call("run", "my.toml", "--out", "out", "--data-root", ".", cwd=project), *fragments)
    assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == kept, "something was written"


ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "no recipe": (["run", "mi.toml"], ["no recipe mi.toml", "did you mean my.toml"]),
    "recipe is a folder": (["run", "."], [r"no recipe \."]),
    "no data root": (["run", "my.toml", "--data-root", "nowhere"], ["data root nowhere", "no such folder"]),
    "--set without value": (["run", "my.toml", "--set", "seed"], ["--set 'seed'", "key=value"]),
    "--set of an unknown key": (["run", "my.toml", "--set", "qat.step=3"], ["qat.step", "did you mean 'steps'"]),
    "--set into no section": (["run", "my.toml", "--set", "seed.x=3"], ["'seed' is no section"]),
    "--set of a wrong value": (["run", "my.toml", "--set", "seed=one"], ["seed = 'one'", "integer"]),
    "--out is a file": (["run", "my.toml", "--out", "my_net.py"], ["my_net.py", "[Ee]xists|[Nn]ot a directory"]),
    "unknown option": (["run", "my.toml", "--owt", "x"], ["--owt", "--out"]),
    "unknown command": (["rum", "my.toml"], ["'rum'", "run"]),
    "no recipe given": (["run"], ["RECIPE"]),
    "workers": (["run", "my.toml", "--workers", "two"], ["--workers", "valid integer"]),
    "no policy file": (["evaluate", "my.toml", "--policy", "p.json"], ["p.json", "no such policy file", "uniform:w4a8"]),
    "policy is no JSON": (["evaluate", "my.toml", "--policy", "my.toml"], ["my.toml", "not valid JSON"]),
    "policy is other JSON": (["cost", "my.toml", "--policy", "other.json"], ["other.json", "layers", "policy.json"]),
    "policy of another schema": (["cost", "my.toml", "--policy", "schema.json"], ["schema.json", "schema_version", "99"]),
    "policy of another model": (["cost", "my.toml", "--policy", "net.json"], ["net.json", "another model", "'conv1'|'stem'"]),
    "policy with an unknown format": (["cost", "my.toml", "--policy", "format.json"], ["'stem'", "'int0'", "did you mean"]),
    "uniform of nothing": (["evaluate", "my.toml", "--policy", "uniform:four"], ["'four'", "w4a8"]),
    "uniform too wide": (["evaluate", "my.toml", "--policy", "uniform:w9a8"], ["int9", "2 to 8"]),
    "width the device lacks": (
        ["cost", "my.toml", "--policy", "uniform:w3a8", "--hardware", "board.toml"],
        ["board", "w3a8", "'stem'"],
    ),
    "cost on no device": (["cost", "my.toml", "--hardware", "bitfussion"], ["did you mean 'bitfusion'"]),
    "results of nothing": (["results", "nowhere"], ["nowhere", "no finished run"]),
    "export of nothing": (["export", "nowhere", "--out", "x.onnx"], ["nowhere", "no such run folder"]),
    "export of an unfinished run": (["export", ".", "--out", "x.onnx"], ["model.safetensors", "finished run"]),
    "export to an unknown format": (["export", ".", "--format", "onx", "--out", "x.onnx"], ["'onx'", "'onnx'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(project, call, case):
    arguments, fragments = ARGUMENTS[case]
    eight = {"weight": "int8", "activation": "uint8"}
    files = {
        "other.json": {"a": 1},
        "schema.json": {"schema_version": 99, "layers": {}},
        "net.json": {"schema_version": 1, "layers": {"conv1": eight}},
        "format.json": {"schema_version": 1, "layers": {"stem": {"weight": "int0", "activation": "uint8"}}},
    }
    for name, content in files.items():
        (project / name).write_text(json.dumps(content))
    kept = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
    check(call(*arguments, cwd=project), *fragments)
    assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == kept, "something was written"


def test_policy_of_other_weights_is_told_apart_by_layers_not_by_numbers(finished, project, call):
    """A finished run's policy on another network: its layers have other names."""
    result = call("evaluate", "my.toml", "--policy", finished.folder / "policy.json", cwd=project)
    check(result, "policy.json", "another model")


def test_export_of_a_truncated_program(finished, call, tmp_path):
    folder = finished.copy(tmp_path / "run", only=["model.safetensors"])
    truncate("model.safetensors")(folder)
    check(call("export", folder, "--out", tmp_path / "x.onnx", cwd=tmp_path), "model.safetensors", "not a readable")
    assert not (tmp_path / "x.onnx").exists()


def test_export_into_no_folder(finished, call, tmp_path):
    result = call("export", finished.folder, "--out", tmp_path / "no" / "x.onnx", cwd=tmp_path)
    check(result, "no such folder", "x.onnx")


def test_a_run_folder_that_another_process_holds(project, call):
    from haqsearch.search.storage import exclusive

    out = project / "out"
    with exclusive(out):
        check(call("run", "my.toml", "--out", "out", cwd=project), "another process", "--out", r"pid \d+")
        assert [path.name for path in out.iterdir()] == ["run.lock"]


def test_a_damaged_journal_is_named(finished, call, tmp_path):
    folder = finished.copy(tmp_path / "run")
    journal = folder / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[4:]]))
    check(call("run", finished.recipe, "--out", folder, cwd=tmp_path), r"study.journal:4", "restore a copy|delete")
