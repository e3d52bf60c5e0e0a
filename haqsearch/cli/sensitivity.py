"""haqsearch sensitivity: what every layer's every width does to the score, alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, RecipePath, assemble, results_folder

if TYPE_CHECKING:
    from haqsearch.spec import SearchSpace, Sensitivity

WIDTH = 80  # characters of a line
_CELL = 8


def command(
    recipe: RecipePath,
    measure: Annotated[
        str,
        typer.Option(
            "--measure",
            metavar="NAME",
            help="accuracy, loss, kl, logit_mse: measured; output_mse, hessian: calculated. Default: the recipe's.",
        ),
    ] = "",
    pairs: Annotated[
        int, typer.Option("--pairs", min=0, metavar="N", help="Interactions of the N most sensitive variables too.")
    ] = 0,
    within: Annotated[
        bool,
        typer.Option("--within", help="Weight and activation of every layer together too, at every pair of widths."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder (default: results/NAME).")
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
    json: AsJson = False,
) -> None:
    """Sensitivity of every layer to every width: measured or calculated once, kept in the run folder."""
    import time

    from haqsearch.errors import RecipeError
    from haqsearch.evaluate.sensitivity import Sensitivities

    assembly = assemble(recipe, set_, data_root, out or results_folder(recipe))
    by = assembly.sensitivity_by(measure, "--measure") if measure else assembly.sensitivity_measure
    few = assembly.recipe.split.sensitivity
    tables = Sensitivities(assembly.evaluator, assembly.space, assembly.out, few, pairs, within)
    calculated = tables.calculated(by)
    if calculated and (pairs or within):
        raise RecipeError(
            f"{calculated.measure.name} knows each width alone: leave out --pairs and --within, or choose kl"
        )
    assembly.round_weights(lambda text: typer.echo(text, err=True))
    if not calculated:
        assembly.evaluator.reference("search")
    start = time.perf_counter()
    steps: list[int] = []
    with assembly.names.users_code(f"--measure {measure}"):
        table = tables.table(by, lambda step, of: steps.append(step))
    seconds = time.perf_counter() - start
    samples = len(calculated.inputs if calculated else assembly.splits.search[0][:few])
    if json:
        from json import dumps

        print(dumps({**table.to_json(), "samples": samples, "seconds": seconds}, indent=2))
        return
    for line in lines(table, assembly.space):
        print(line)
    done = f"calculated from {samples} samples" if calculated else f"{len(steps)} evaluations of {samples} samples"
    file = calculated.file if calculated else tables.file
    print(f"{done} in {seconds:.1f} s" if steps else f"found in {file}")


def lines(table: Sensitivity, space: SearchSpace) -> Iterator[str]:
    """The table as text of at most ``WIDTH`` columns: a line for every decision, a column for every format below its widest."""
    yield f"rise of {table.measure} when one alone has so many bits; all widest: {table.base:.4g}"
    yield "w: the layer's weights, a: the activations that it reads"
    formats = sorted({f for v in space.variables for f in v.candidates[:-1]}, key=lambda f: f.bits)
    columns = list(dict.fromkeys(_column(str(f)) for f in formats))
    cell = max([_CELL, *(len(column) for column in columns)])
    names = [_short(v.layers[0], v.role, WIDTH - cell - 1) for v in space.variables]
    # As many columns as fit beside whole names; names give way to four of them.
    length = max(map(len, names), default=0)
    at_once = max((WIDTH - length) // (cell + 1), min(4, len(columns)), 1)
    length = min(length, WIDTH - at_once * (cell + 1))
    for first in range(0, len(columns), at_once):
        shown = columns[first : first + at_once]
        yield " " * length + "".join(f" {column:>{cell}}" for column in shown)
        for variable in space.variables:
            rises = {
                _column(str(f)): f"{r:.2g}" for f, r in zip(variable.candidates, table.rise[variable.name], strict=True)
            }
            rises.pop(_column(str(variable.candidates[-1])))
            cells = "".join(f" {rises.get(column, ''):>{cell}}" for column in shown)
            yield f"{_short(variable.layers[0], variable.role, length):{length}}{cells}".rstrip()
    if table.pairs:
        yield "what two at their narrowest add beyond the sum of both:"
    named = {v.name: (v.layers[0], v.role) for v in space.variables}
    for pair, beyond in table.pairs.items():
        first_name, second_name = (_short(*named[name], (WIDTH - 15) // 2) for name in pair)
        yield f"{first_name} x {second_name} {beyond[0][0]:+.3g}"


def _column(text: str) -> str:
    """int4 and uint4 share the column ``4 bits``; other formats have their own."""
    plain = re.fullmatch(r"u?int(\d+)", text)
    return f"{plain[1]} bits" if plain else text


def _short(layer: str, role: str, length: int) -> str:
    """``layer3.0.conv1 w`` in at most ``length`` characters; of a long name the end is kept."""
    text = f"{layer} {role[0]}"
    return text if len(text) <= length else "…" + text[len(text) - length + 1 :]
