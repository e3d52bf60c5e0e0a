"""What README and CONTRIBUTING say is there, parses, and runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from haqsearch.config import Recipe, flat, load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "hwmodels" / "README.md"]
WRITTEN_BY_A_RUN = {"policy.json", "model.onnx", "model.safetensors", "summary.json", "trials.parquet", "pareto.json",
                    "report.html", "recipe.toml"}  # fmt: skip


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def files_of_readme() -> dict[str, str]:
    """Code blocks whose first line is a comment with a file name."""
    found = {}
    for language in ("python", "toml"):
        for block in blocks(ROOT / "README.md", language):
            name = re.match(r"# (\w+\.(?:py|toml))\n", block)
            assert name, f"a block of README without a file name runs nowhere: {block[:60]!r}"
            found[name[1]] = block
    return found


def commands(document: Path) -> list[str]:
    """Every ``haqsearch ...`` in a shell block or between backticks, without its comment."""
    text = document.read_text()
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(haqsearch [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    return [line.partition(" #")[0].strip() for line in lines if line.startswith("haqsearch ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_is_there(document):
    text = document.read_text()
    named = re.findall(r"\]\(([^)#\s]+)\)", text)  # links, pictures
    named += re.findall(r"`((?:haqsearch|hwmodels|searches|results|tests|docs)/[\w./-]*)`", text)
    named += [
        word for line in commands(document) for word in shlex.split(line) if word.startswith(("searches/", "hwmodels/"))
    ]
    named = [name for name in named if not name.startswith("http") and not Path(name).stem == "mine"]
    assert named or document.parent != ROOT
    missing = [name for name in named if not (document.parent / name).exists() and not (ROOT / name).exists()]
    assert not missing, f"{document.name} names what is not there: {missing}"


@pytest.mark.parametrize("document", DOCUMENTS[:2], ids=lambda path: path.name)
def test_every_command_parses(document):
    import typer

    from haqsearch.cli import build_app

    group = typer.main.get_command(build_app())
    found = commands(document)
    assert found
    for line in found:
        _, name, *arguments = shlex.split(line)
        assert name in group.commands, f"{document.name}: {line}: no such command"
        with group.commands[name].make_context(name, arguments):  # raises on an unknown option or a missing argument
            pass


def test_every_command_is_in_the_readme():
    from haqsearch.cli import COMMANDS

    assert {shlex.split(line)[1] for line in commands(ROOT / "README.md")} == set(COMMANDS)


def test_every_make_target_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for target in re.findall(r"(?:`|^)make ([\w-]+)", document.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


def test_own_model_data_and_device_take_fewer_than_fifteen_lines():
    for name, text in files_of_readme().items():
        assert len(text.splitlines()) - 1 < 15, f"{name} has {len(text.splitlines()) - 1} lines"
        assert "TODO" not in text


def test_the_recipe_table_has_every_key_with_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    defaults, unset = (
        flat(Recipe(**_REQUIRED)),
        {"split.report", "split.sensitivity"},
    )  # by default: as many as there are
    table = {key: default.strip("`") for key, default in rows if key in {*defaults, *unset}}
    assert table.keys() | {"fixed"} == {key for key in defaults if not key.startswith("fixed")} | {"fixed", *unset}
    for key, text in table.items():
        if key in _REQUIRED or key in unset:
            continue
        stated, real = tomllib.loads(f"x = {text}")["x"], tomllib.loads(f"x = {defaults[key]}")["x"]
        assert stated == real, f"{key}: README says {text}, the default is {defaults[key]}"


_REQUIRED = {"model": "m", "data": "d", "hardware": "h", "budget": ("bops <= 1 G",)}


def test_names_in_the_recipe_table_are_the_names_there_are():
    from haqsearch.agents import AGENTS
    from haqsearch.data import DATASETS
    from haqsearch.models import MODELS
    from haqsearch.spec import METRICS, OBJECTIVES
    from hwmodels import list_profiles

    rows = dict(re.findall(r"^\| `([\w.]+)` \| .+? \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    for key, names in {"model": MODELS, "data": DATASETS, "hardware": list_profiles(), "agent": AGENTS,
                       "objective": OBJECTIVES, "budget": METRICS}.items():  # fmt: skip
        said = set(re.findall(r"`([\w-]+)`", rows[key]))
        assert said == set(names), f"{key}: README names {sorted(said)}, there are {sorted(names)}"


@pytest.fixture
def forgetful():
    """README's modules are imported here, and forgotten again."""
    names = [Path(name).stem for name in files_of_readme()]
    assert not set(names) & sys.modules.keys()
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("forgetful")
def test_what_the_readme_says_about_ones_own_runs(tmp_path, monkeypatch, capsys):
    """README's model, data, device and recipe, side by side in a folder: searched, evaluated, exported."""
    from haqsearch.cli import main

    for name, text in files_of_readme().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert load_recipe(tmp_path / "my.toml").hardware == "my_board.toml"

    def haqsearch(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["haqsearch", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == 0, err
        return out

    quick = ["--set", "max_evaluations=6", "--set", "qat.steps=5", "--set", "train.epochs=2"]
    haqsearch("run", "my.toml", "--out", "runs/a", *quick)
    names = {path.name for path in (tmp_path / "runs" / "a").iterdir()}
    assert names >= WRITTEN_BY_A_RUN
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert summary["feasible"] and summary["hardware"]["name"] == "my-board"
    haqsearch("inspect", "my.toml", *quick)
    haqsearch("cost", "my.toml", "--policy", "uniform:w4a8", "--hardware", "bitfusion", *quick)
    found = json.loads(haqsearch("evaluate", "my.toml", "--policy", "runs/a/policy.json", "--json", *quick))
    assert found["policy_digest"] == summary["policy_digest"]
    haqsearch("export", "runs/a", "--format", "onnx", "--out", "my.onnx")


def test_from_a_data_sheet_to_a_search_without_python(tmp_path, monkeypatch, capsys):
    """Under 30 lines of TOML and two commands, as README's section of that name says them."""
    from haqsearch.cli import main

    text = (ROOT / "README.md").read_text()
    section = re.search(r"^### From a data sheet to a search, without Python\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert section
    files = re.findall(r"^```toml\n# ([\w.]+)\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    (shell,) = re.findall(r"^```sh\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    assert "```python" not in section[1]
    assert sum(len(content.splitlines()) for _, content in files) < 30
    for name, content in files:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    told = [shlex.split(line.partition("#")[0])[1:] for line in shell.splitlines()]
    assert len(told) == 2
    quick = ["--out", "out", "--set", "max_evaluations=4", "--set", "qat.steps=2", "--set", "train.epochs=2"]
    said = []
    for arguments in told:
        monkeypatch.setattr("sys.argv", ["haqsearch", *arguments, *(quick if arguments[0] == "run" else [])])
        with pytest.raises(SystemExit) as end:
            main()
        said.append(capsys.readouterr())
        assert end.value.code == 0, said[-1].err
    assert said[0].out.endswith("can be used; no warnings\n")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["feasible"] and summary["hardware"]["name"] == "npu"


def test_the_device_in_the_kits_readme_loads():
    from hwmodels.profile import parse

    (profile,) = blocks(ROOT / "hwmodels" / "README.md", "toml")
    assert parse(tomllib.loads(profile), "README").name == "my-board"


def test_the_picture_is_one_and_not_too_large():
    picture = ROOT / "docs" / "report.png"
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 250_000
    assert int.from_bytes(content[16:20], "big") == 1280


def test_the_licence_is_the_whole_of_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert [int(n) for n in re.findall(r"^   (\d)\. [A-Z]", text, re.MULTILINE)] == list(range(1, 10))


def test_recipes_of_ours_are_valid():
    for path in sorted((ROOT / "searches").rglob("*.toml")):
        load_recipe(path)


def test_the_results_in_readme_are_those_of_the_results_folder():
    """No number is typed by hand: `haqsearch results --write README.md` changes nothing."""
    from haqsearch.cli.results import BEGIN, END, table

    text = (ROOT / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.split(BEGIN)[1].split(END)[0].strip() == table(ROOT / "results").strip()
