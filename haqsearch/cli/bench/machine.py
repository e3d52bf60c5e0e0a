"""Benches of this machine, which share their options. To add one: a file with a function of a ``Request``, and a line in
``BENCHES``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, assemble, results_folder

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly

# Name -> MODULE:FUNCTION, and its help. The function takes a Request, and gives what --json prints, with lines for people as
# "text".
BENCHES = {
    "calibrate": (
        "haqsearch.cli.bench.calibrate:calibrate",
        "The ranges of every value by all observers at once, against float forward passes.",
    ),
    "kernels": ("haqsearch.cli.bench.kernels:kernels", "Integer layers against torch's int8 engines."),
    "evaluate": (
        "haqsearch.cli.bench.evaluate:evaluate",
        "Scoring a policy, against fake quantization and float32.",
    ),
    "agreement": (
        "haqsearch.cli.bench.agreement:agreement",
        "Whether the search's program, the reference and the exported model give the same codes.",
    ),
}

# What keeps torch's engines to the instructions that our kernels are kept to.
LIMITS = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},  # only oneDNN has kernels of AMX
}


@dataclass(frozen=True)
class Request:
    """What the user asked for. ``folder``: where result files go, None for nowhere."""

    recipe: Path
    overrides: list[str] | None
    data_root: Path | None
    repeats: int
    threads: tuple[int, ...]
    only: str
    folder: Path | None
    images: int = 500

    def assembly(self) -> Assembly:
        """The recipe's network, data and device."""
        return assemble(self.recipe, self.overrides, self.data_root, results_folder(self.recipe))


def measuring(what: str) -> Callable[..., None]:
    """The command of the bench ``what``."""

    def command(
        recipe: Annotated[Path, typer.Argument(metavar="[RECIPE]", help="A recipe: a TOML file.")] = Path(
            "searches/digits-bismo-edge.toml"
        ),
        repeats: Annotated[int, typer.Option("--repeats", min=1, help="Measurements; the median counts.")] = 7,
        threads: Annotated[
            str, typer.Option("--threads", metavar="N,..", help="Numbers of threads to measure with.")
        ] = "1,2",
        isa: Annotated[
            Optional[str],  # noqa: UP045 - typer reads the annotation itself
            typer.Option("--isa", help="Keep our kernels and torch's to this instruction set: avx2, avx512."),
        ] = None,
        only: Annotated[
            str, typer.Option("--only", metavar="TEXT", help="Only the cases whose name holds this text.")
        ] = "",
        images: Annotated[
            int, typer.Option("--images", min=1, help="Images of the report split that agreement compares.")
        ] = 500,
        out: Annotated[
            Optional[Path],  # noqa: UP045
            typer.Option("--out", metavar="DIR", help="Also write the rows there, and a summary."),
        ] = None,
        set_: Overrides = None,
        data_root: DataRoot = None,
        json: AsJson = False,
    ) -> None:
        if isa:
            _keep_to(isa)
        bench, _ = BENCHES[what]
        found = _load(bench)(Request(recipe, set_, data_root, repeats, _counts(threads), only, out, images))
        lines = found.pop("text")
        if json:
            from json import dumps

            print(dumps({"bench": what, "recipe": recipe.stem, **found}, indent=2))
        else:
            print("\n".join(lines))

    command.__doc__ = BENCHES[what][1]
    return command


def _counts(text: str) -> tuple[int, ...]:
    from haqsearch.errors import RecipeError

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"--threads {text!r}: give numbers of threads, as in 1,2")
    return tuple(int(part) for part in parts)


def _keep_to(isa: str) -> None:
    """Start this process anew within ``isa``: torch's libraries read their limits when they are loaded."""
    import sys

    from haqsearch.errors import RecipeError

    if isa not in LIMITS:
        raise RecipeError(
            f"--isa {isa!r}: torch's engines can be kept to {', '.join(LIMITS)}; HAQSEARCH_ISA sets ours alone"
        )
    limits = {**LIMITS[isa], "HAQSEARCH_ISA": isa}
    if any(os.environ.get(key) != value for key, value in limits.items()):
        os.environ.update(limits)
        os.execv(sys.executable, [sys.executable, "-c", "from haqsearch.cli import main; main()", *sys.argv[1:]])


def _load(place: str) -> Callable[[Request], dict[str, Any]]:
    from importlib import import_module

    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
