"""haqsearch sensitivity: what every layer's every width does to the score, alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, RecipePath, assemble, results_folder


def command(
    recipe: RecipePath,
    measure: Annotated[
        str, typer.Option("--measure", metavar="NAME", help="accuracy, loss, kl or logit_mse (default).")
    ] = "logit_mse",
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
    """Measure the sensitivity of every layer to every width, on the search split; measured once, kept in the run folder."""
    import time

    from haqsearch.evaluate.sensitivity import Sensitivities
    from haqsearch.evaluate.weights import WeightBank

    assembly = assemble(recipe, set_, data_root, out or results_folder(recipe))
    bank = assembly.prepared.weight
    if isinstance(bank, WeightBank):
        bank.prepare(
            ((v.layers[0], format) for v in assembly.space.variables if v.role == "weight" for format in v.candidates),
            lambda text: typer.echo(text, err=True),
        )
    assembly.evaluator.reference("search")
    start = time.perf_counter()
    done = [0]
    tables = Sensitivities(assembly.evaluator, assembly.space, assembly.out, pairs=pairs, within=within)
    table = tables.table(measure, lambda step, of: done.__setitem__(0, done[0] + 1))
    seconds = time.perf_counter() - start
    if json:
        from json import dumps

        print(dumps({**table.to_json(), "samples": len(assembly.splits.search[0]), "seconds": seconds}, indent=2))
        return
    widths = sorted({f for v in assembly.space.variables for f in v.candidates}, key=lambda f: f.bits)
    bits = list(dict.fromkeys(f.bits for f in widths))
    length = max(len(v.name) for v in assembly.space.variables)
    print(f"rise of {table.measure} when one alone has so many bits; all at their widest: {table.base:.5g}")
    print(f"{'':{length}} " + " ".join(f"{f'{b:g} bits':>8}" for b in bits))
    for variable in assembly.space.variables:
        rises = {f.bits: rise for f, rise in zip(variable.candidates, table.rise[variable.name], strict=True)}
        cells = [f"{rises[b]:8.2g}" if b in rises else " " * 8 for b in bits]
        print(f"{variable.name:{length}} " + " ".join(cells))
    if table.pairs:
        print("what two at their narrowest add beyond the sum of both:")
    for (first, second), beyond in table.pairs.items():
        print(f"{first} x {second} {beyond[0][0]:+.3g}")
    samples = len(assembly.splits.search[0])
    print(f"{done[0]} evaluations of {samples} samples in {seconds:.1f} s" if done[0] else f"found in {tables.file}")
