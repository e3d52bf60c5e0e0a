"""haqsearch cost: what a policy costs on a device, layer by layer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, PolicyText, RecipePath, assemble, results_folder


def command(
    recipe: RecipePath,
    policy: PolicyText = "uniform:w8a8",
    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="H", help="Device name or TOML file (default: the recipe's).")
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
    json: AsJson = False,
) -> None:
    """Cost of a policy on a device, in total and by layer, with what bounds each layer and where fewer bits buy nothing."""
    from json import dumps as quoted

    from haqsearch.cli.policies import check_policy_widths, load_policy
    from hwmodels.savings import idle

    overrides = [*(set_ or []), *([f"hardware={quoted(hardware)}"] if hardware else [])]
    assembly = assemble(recipe, overrides, data_root, results_folder(recipe))
    chosen = load_policy(policy, assembly)
    check_policy_widths(chosen, assembly)
    costs, int8 = assembly.meter.costs(chosen), assembly.meter.int8()
    metric, roles = idle(assembly.meter, chosen)
    layers = [
        {
            "layer": layer.name,
            "choice": str(chosen[layer.name]),
            "bound": cost.bound,
            "source": cost.source,
            "buys_nothing": list(roles[layer.name]),
            **cost.values,
        }
        for layer, cost in assembly.meter.layer_costs(chosen)
    ]
    device: dict[str, Any] = {
        "name": assembly.device.name,
        "summary": assembly.device.summary,
        "draft": assembly.device.draft,
        "batch": assembly.device.default_batch,
    }
    if json:
        from json import dumps

        print(
            dumps(
                {
                    "hardware": device,
                    "policy_digest": chosen.digest,
                    "metrics": costs,
                    "int8_metrics": int8,
                    "buys_nothing_metric": metric,
                    "layers": layers,
                },
                indent=2,
            )
        )
        return
    _print(device, costs, int8, layers, metric)


def _print(
    device: dict[str, Any], costs: dict[str, float], int8: dict[str, float], layers: list[dict[str, Any]], metric: str
) -> None:
    from collections import Counter

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from hwmodels.meter import quantity

    console = Console(highlight=False)
    names = [name for name in costs if name in layers[0]]
    draft = ", a draft: names no sources" if device["draft"] else ""
    table = Table(
        title=f"{device['name']}, batch {device['batch']}{draft}", box=SIMPLE_HEAD, padding=0, collapse_padding=True
    )
    table.add_column("layer", no_wrap=True)
    table.add_column("bits", no_wrap=True)
    for name in names:
        table.add_column(name.rsplit("_", 1)[0], justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    table.add_column("idle", no_wrap=True)
    for layer in layers:
        shown = [quantity(name, layer[name]) for name in names]
        table.add_row(layer["layer"], layer["choice"], *shown, layer["bound"], _idle(layer["buys_nothing"]))
    console.print(table)
    for name, value in costs.items():
        share = f" ({value / int8[name]:.3f} of int8)" if int8[name] else ""
        console.print(f"{name}: {quantity(name, value)}{share}")
    counts = Counter(role for layer in layers for role in layer["buys_nothing"])
    if counts:
        console.print(
            f"idle: fewer weight bits (w) alone save less than 1 % of {metric} in {counts['weight']} of {len(layers)} layers, "
            f"fewer activation bits (a) in {counts['activation']}, both in {counts['both']} (-)"
        )
    sources = Counter(layer["source"].split()[0].rstrip(":") for layer in layers)
    if set(sources) - {"profile"}:
        console.print("layers: " + ", ".join(f"{count} {word}" for word, count in sources.most_common()))


def _idle(roles: list[str]) -> str:
    """``w``, ``a``: narrower ones alone save nothing; ``-``: not even both together do."""
    if "both" in roles:
        return "-"
    return " ".join({"weight": "w", "activation": "a"}[role] for role in roles)
