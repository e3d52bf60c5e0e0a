"""Importing a package is cheap: heavy libraries are loaded where they are used, not where they are named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEAVY = (
    "torch",
    "ray",
    "optuna",
    "onnx",
    "onnxruntime",
    "plotly",
    "pandas",
    "pyarrow",
    "pydantic",
    "sklearn",
    "typer",
    "rich",
)

BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked by this test")

sys.meta_path.insert(0, Block())
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packages_load_nothing_heavy():
    """One process a package would cost a second more each, and say no more: a module once loaded stays."""
    lean = ("haqsearch", "hwmodels", "searches", "haqsearch.errors", "haqsearch.spec", "haqsearch.files", "haqsearch.agents",
            "haqsearch.search", "haqsearch.report", "haqsearch.export", "haqsearch.kernels", "haqsearch.models",
            "haqsearch.testing", "haqsearch.cli")  # fmt: skip
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {lean!r}:\n"
        "    import_module(name)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules: print(name, 'loads', heavy)\n"
    )
    assert python(code) == ""


@pytest.mark.parametrize(
    ("blocked", "code"),
    [
        ({"ray", "optuna", "onnx", "plotly"}, "import haqsearch.kernels.reference, haqsearch.quant, haqsearch.evaluate"),
        ({"torch", "ray"}, "import haqsearch.search.loop, haqsearch.search.storage, haqsearch.agents.tpe"),
        ({"torch", "ray", "optuna", "onnx"}, "import haqsearch.report.run_page"),
        ({"torch", "ray", "optuna", "onnx", "pandas"}, "import hwmodels; hwmodels.load('bismo-edge'); hwmodels.Meter"),
        ({"torch", "ray", "optuna", "numpy", "pydantic"}, "from haqsearch.spec import Policy; Policy({}).digest"),
    ],
)  # fmt: skip
def test_parts_work_without_what_they_do_not_need(blocked, code):
    python(BLOCK.format(blocked=blocked) + code)


def test_names_are_offered_without_being_loaded():
    python(
        "import haqsearch, hwmodels\nassert 'Policy' in dir(haqsearch) and 'load' in dir(hwmodels)\nhaqsearch.Policy"
    )
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        __import__("haqsearch").Polcy  # noqa: B018


def test_without_the_native_build_everything_runs_on_the_reference_with_one_warning():
    code = (
        "sys.modules['haqsearch.kernels.native._native'] = None\n"
        "import warnings\nwarnings.simplefilter('always')\n"
        "sys.path.insert(0, 'tests')\n"
        "from networks import inputs, random_policy, small\n"
        "from haqsearch.runtime import run_program\n"
        "ready = small('shortcut')\n"
        "program = ready.lower(random_policy(ready, 1))\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3): run_program(program, inputs('shortcut', 2))\n"
        "told = [str(w.message) for w in seen if 'native kernels' in str(w.message)]\n"
        "assert len(told) == 1 and 'pip install' in told[0], told\n"
    )
    python("import sys\n" + code)


def test_the_native_kernels_are_built_where_there_is_a_compiler():
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler: without one the package installs without native kernels")
    import haqsearch.kernels.native

    assert haqsearch.kernels.native.isas()[-1] == "portable"
