"""haqsearch inspect: what the search sees of a model."""

from __future__ import annotations

from haqsearch.cli.options import AsJson, DataRoot, Overrides, RecipePath, assemble, results_folder


def command(recipe: RecipePath, set_: Overrides = None, data_root: DataRoot = None, json: AsJson = False) -> None:
    """Layers, shapes, multiply-accumulates and ties of a recipe's model, and its search space."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    assembly = assemble(recipe, set_, data_root, results_folder(recipe))
    spec, space = assembly.prepared.spec, assembly.space
    candidates: dict[str, dict[str, str]] = {}
    for variable in space.variables:
        text = ", ".join(str(format) for format in variable.candidates)
        for name in variable.layers:
            candidates.setdefault(name, {})[variable.role] = text
    if json:
        from dataclasses import asdict
        from json import dumps

        layers = [{**asdict(layer), "candidates": candidates.get(layer.name)} for layer in spec]
        print(
            dumps(
                {"model": spec.name, "layers": layers, "policies": space.size, "removed": list(space.removed)}, indent=2
            )
        )
        return
    console = Console(highlight=False)
    table = Table(title=f"{spec.name}, input {_shape(spec.input_shape)}", box=SIMPLE_HEAD, padding=0)
    table.add_column("layer", overflow="fold")
    for name in ("op", "in", "out"):
        table.add_column(name, no_wrap=True)
    for name in ("weights", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reads with", overflow="fold")
    for layer in spec:
        tied = [name for name in spec.ties.get(layer.activation_tie, ()) if name != layer.name]
        note = "float32" if not layer.quantizable else ", ".join(tied)
        table.add_row(
            layer.name,
            layer.op,
            _shape(layer.in_shape),
            _shape(layer.out_shape),
            f"{layer.weight_count:,}",
            f"{layer.macs:,}",
            note,
        )
    console.print(table)
    total = sum(layer.macs for layer in spec)
    weights = sum(layer.weight_count for layer in spec)
    console.print(
        f"{len(spec)} layers, {weights:,} weights, {total:,} MACs; {len(space.variables)} variables, {space.size:.3g} policies"
    )
    for sentence in space.removed:
        console.print(f"[yellow]removed[/yellow] {sentence}")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
