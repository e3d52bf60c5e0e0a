"""Who may know whom. Every import is read from the source, wherever it stands; a name in a table is an import too."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("haqsearch", "hwmodels", "searches")

# Room -> the rooms it may import, besides itself and what everyone may. A room is a package or module of haqsearch, or
# hwmodels, or searches.
EVERYONE = {"errors", "spec", "files"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "spec": set(),
    "files": set(),
    "config": set(),
    "data": set(),
    "quant": set(),
    "calibrate": {"kernels", "quant"},  # kernels: counting natively
    "kernels": {"quant"},
    "graph": {"quant", "calibrate"},
    "ptq": {"graph", "calibrate", "kernels", "quant"},  # kernels: rounding natively
    "qat": {"graph", "calibrate", "quant", "data"},  # data: the splits it trains on
    "runtime": {"graph", "kernels", "quant"},
    "evaluate": {"ptq", "qat", "runtime", "graph", "kernels", "calibrate", "quant", "data"},
    "models": {"data"},
    "importers": set(),
    "agents": set(),
    "search": set(),
    "hwmodels": set(),
    "searches": set(),
    "export": {"runtime", "graph", "quant"},
    "report": set(),
    "testing": {"agents", "search", "hwmodels"},
    "cli": {
        "config", "data", "quant", "calibrate", "kernels", "graph", "ptq", "qat", "runtime", "evaluate", "models",
        "importers", "agents", "search", "hwmodels", "export", "report",
    },
}  # fmt: skip
# What a file may import beyond its room: the one loop drives agents; a table measured here would run kernels.
FILES: dict[str, set[str]] = {
    "haqsearch/search/loop.py": {"agents.base", "agents.problem"},
    "haqsearch/search/source.py": {"agents.base", "agents.problem"},
    "haqsearch/search/refine.py": {"agents.problem"},
    "hwmodels/measure.py": {"kernels", "runtime"},
}

# Heavy library -> the only places that may import it.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torch": (
        "haqsearch/data/", "haqsearch/models/", "haqsearch/quant/", "haqsearch/calibrate/", "haqsearch/kernels/",
        "haqsearch/graph/", "haqsearch/ptq/", "haqsearch/qat/", "haqsearch/runtime/", "haqsearch/evaluate/",
        "haqsearch/export/", "haqsearch/cli/", "haqsearch/agents/actor_critic.py", "haqsearch/agents/threads.py",
        "hwmodels/measure.py",
    ),
    "ray": ("haqsearch/search/ray_pool.py",),
    "optuna": ("haqsearch/agents/", "haqsearch/search/", "haqsearch/testing/"),
    "triton": ("haqsearch/kernels/triton/",),
    "onnx": ("haqsearch/export/",),
    "plotly": ("haqsearch/report/",),
    "pandas": ("haqsearch/search/records.py", "haqsearch/report/", "hwmodels/table.py"),
    "sklearn": ("haqsearch/data/", "haqsearch/quant/"),
    "PIL": ("haqsearch/data/imagenet.py",),
    "pydantic": ("haqsearch/config/", "hwmodels/"),
    "typer": ("haqsearch/cli/",),
    "rich": ("haqsearch/cli/",),
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """``module`` imported (or named in a table) at ``where``, FILE:LINE."""

    file: str
    line: int
    module: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def room(module: str) -> str:
    """``haqsearch.quant.affine`` is in the room ``quant``, ``hwmodels.base`` in ``hwmodels``, ``haqsearch`` itself in none."""
    first, *rest = module.split(".")
    return (rest[0] if rest else "") if first == "haqsearch" else first


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, file: str, package: str) -> Iterator[Import]:
    tree = ast.parse(source, file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: resolved against the package
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}" if base in OURS else base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(rf"({'|'.join(OURS)})(\.\w+)+(:\w+)?", node.value):
                yield Import(file, node.lineno, node.value.partition(":")[0])


@cache
def sources() -> tuple[Path, ...]:
    return tuple(sorted(path for name in OURS for path in (ROOT / name).rglob("*.py")))


@cache
def imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for path in sources():
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found += imports_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), package)
    return tuple(found)


def wrong_edge(one: Import) -> str:
    """Why this import is forbidden; empty where it is not."""
    here, there = room(module_of(ROOT / one.file)), room(one.module)
    if there not in ROOMS or here == there:  # another's library, or a name that haqsearch itself offers
        return ""
    if one.file == "haqsearch/__init__.py":
        return "" if there in EVERYONE else "the package itself offers the vocabulary only"
    if here in {"errors", "files"} or (here == "spec" and there != "errors"):
        return f"{here} knows nothing else"
    if here in {"hwmodels", "quant"} and there == "files":
        return f"{here} writes no files"
    if there in EVERYONE | ROOMS[here]:
        return ""
    for allowed in FILES.get(one.file, ()):
        if one.module == f"haqsearch.{allowed}" or one.module.startswith(f"haqsearch.{allowed}."):
            return ""
    return f"{here} may import {', '.join(sorted(EVERYONE | ROOMS[here]))}, not {there}"


def wrong_library(one: Import) -> str:
    top = one.module.split(".")[0]
    if one.file.startswith("haqsearch/spec/") and top not in {*sys.stdlib_module_names, "haqsearch"}:
        return f"spec is the standard library only, not {top}"
    if top in LIBRARIES and not one.file.startswith(LIBRARIES[top]):
        return f"{top} is for {', '.join(LIBRARIES[top])}"
    return ""


def test_every_room_is_in_the_plan():
    packages = {path.parent.name for path in (ROOT / "haqsearch").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "haqsearch").glob("*.py")} - {"__init__"}
    unknown = (packages | modules) - ROOMS.keys()
    assert not unknown, f"say in ROOMS whom {', '.join(sorted(unknown))} may import"
    assert packages | modules | {"hwmodels", "searches"} == ROOMS.keys()


def test_rooms_import_only_those_they_may():
    wrong = [f"{one.where}: {one.module}: {why}" for one in imports() if (why := wrong_edge(one))]
    assert not wrong, "\n".join(wrong)


def test_heavy_libraries_are_imported_where_they_are_needed():
    wrong = [f"{one.where}: {one.module}: {why}" for one in imports() if (why := wrong_library(one))]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line_or_tests():
    for one in imports():
        if not one.file.startswith("haqsearch/cli/"):
            assert room(one.module) != "cli", f"{one.where}: nothing imports the command line"
        assert not one.module.startswith("tests"), f"{one.where}: the product does not import its tests"


def test_the_plan_has_no_cycles():
    """A room never reaches itself through the rooms it may import."""
    for start, known in ROOMS.items():
        seen, todo = set(), set(known)
        while todo:
            at = todo.pop()
            assert at != start, f"{start} is reachable from itself"
            if at not in seen:
                seen.add(at)
                todo |= ROOMS[at]


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("haqsearch/quant/x.py", "from haqsearch.graph import trace", "not graph"),
        ("haqsearch/quant/x.py", "def f():\n    from haqsearch import graph", "not graph"),
        ("haqsearch/quant/x.py", "from ..graph import trace", "not graph"),
        ("haqsearch/agents/x.py", "TABLE = {'a': 'haqsearch.search.loop:run'}", "not search"),
        ("haqsearch/search/x.py", "from haqsearch.agents.base import Agent", "not agents"),
        ("haqsearch/search/loop.py", "from haqsearch.agents.tpe import TPE", "not agents"),
        ("haqsearch/report/x.py", "import haqsearch.cli.run", "not cli"),
        ("hwmodels/x.py", "import torch", "torch is for"),
        ("haqsearch/agents/tpe.py", "import torch.nn", "torch is for"),
        ("haqsearch/search/loop.py", "import ray", "ray is for"),
        ("haqsearch/spec/x.py", "import numpy as np", "standard library only"),
        ("haqsearch/spec/x.py", "from haqsearch.files import replacing", "knows nothing else"),
    ],
)
def test_a_forbidden_import_is_seen(file, source, why):
    package = ".".join(Path(file).parent.parts)
    found = [wrong_edge(one) or wrong_library(one) for one in imports_of(source, file, package)]
    assert any(why in text for text in found), found


def test_allowed_imports_pass():
    source = "from haqsearch.agents.base import Agent\nfrom haqsearch.spec import Policy\nimport optuna\n"
    for one in imports_of(source, "haqsearch/search/loop.py", "haqsearch.search"):
        assert not wrong_edge(one) and not wrong_library(one)
