"""Arguments that several commands share, and the assembly they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from haqsearch.cli.assemble import Assembly
from haqsearch.cli.names import data_roots
from haqsearch.config import load_recipe

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file, see searches/.", show_default=False)
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation itself
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; dotted keys, as in qat.steps=200."),
]
DataRoot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--data-root", metavar="DIR", help="Folder with data sets and weights; also HAQSEARCH_DATA."),
]
RunRecipe = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--recipe", metavar="FILE", help="Recipe of the run, if modules of yours lie beside it."),
]
PolicyText = Annotated[
    str,
    typer.Option("--policy", metavar="P", help="A policy file, uniform:w4a8, or another tool's: haq:F, nncf:F, mct:F."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def assemble(recipe: Path, overrides: list[str] | None, data_root: Path | None, out: Path | None = None) -> Assembly:
    """Assembly of a recipe file; ``out`` is the run folder, where a network trained by the recipe is kept."""
    return Assembly(load_recipe(recipe, overrides or ()), recipe.parent, tuple(data_roots(data_root)), out)


def results_folder(recipe: Path) -> Path:
    """Where a recipe's outcome goes unless --out says otherwise: results/NAME, beside the folder the recipe lies in."""
    parent = recipe.resolve().parent
    return (parent.parent if parent.name == "searches" else Path.cwd()) / "results" / recipe.stem
