"""haqsearch hw compare: policies on devices that they were not found for, HAQ's table 1."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, RecipePath, assemble, results_folder


def command(
    recipe: RecipePath,
    more: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation itself
        typer.Argument(metavar="[DEVICE]...", help="Further devices.", show_default=False),
    ] = None,
    policy: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--policy", metavar="P", help="A policy file, or uniform:w4a8; once for each policy."),
    ] = None,
    hardware: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--hardware", metavar="D D ...", help="Devices: names or TOML files (default: all that come along)."
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="M", help="latency_s, energy_j, size_bytes, ...")
    ] = "latency_s",
    set_: Overrides = None,
    data_root: DataRoot = None,
    json: AsJson = False,
) -> None:
    """What each policy costs on each device: a policy found for one is rarely the best on another."""
    from haqsearch.cli.policies import load_policy
    from haqsearch.errors import RecipeError
    from haqsearch.spec import METRICS
    from hwmodels import Meter, list_profiles

    if metric not in METRICS:
        raise RecipeError(f"--metric {metric}: there are {', '.join(METRICS)}")
    assembly = assemble(recipe, set_, data_root, results_folder(recipe))
    policies = {text: load_policy(text, assembly) for text in policy or ["uniform:w8a8"]}
    devices = [assembly.load_device(name) for name in [*(hardware or []), *(more or [])] or list_profiles()]
    cells: dict[str, dict[str, Any]] = {text: {} for text in policies}
    for device in devices:
        meter = Meter(device, assembly.prepared.spec)
        for text, chosen in policies.items():
            cells[text][device.name] = _cell(meter, chosen, metric)
    if json:
        from json import dumps

        print(dumps({"model": assembly.model_name, "metric": metric, "policies": cells}, indent=2))
        return
    _print(assembly.model_name, metric, [device.name for device in devices], cells)


def _cell(meter: Any, policy: Any, metric: str) -> dict[str, Any]:
    """The cost for the device's own batch, and its share of 8 bits everywhere; or why there is none."""
    from haqsearch.errors import HardwareError

    try:
        value = meter.costs(policy).get(metric)
        int8 = meter.int8().get(metric)
    except HardwareError as error:
        return {"value": None, "of_int8": None, "batch": meter.batch, "why": str(error)}
    why = "" if value is not None else f"the device gives no {metric}"
    return {
        "value": value,
        "of_int8": value / int8 if value is not None and int8 else None,
        "batch": meter.batch,
        "why": why,
    }


def _print(model: str, metric: str, devices: list[str], cells: dict[str, dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from hwmodels.meter import quantity

    console = Console(highlight=False, markup=False)
    # One row a device: any number of them fits the terminal.
    table = Table(
        title=f"{model}, {metric} (share of 8 bits everywhere)", box=SIMPLE_HEAD, padding=0, collapse_padding=True
    )
    table.add_column("device", no_wrap=True)
    for text in cells:
        table.add_column(text, justify="right", overflow="fold")
    for device in devices:
        row = [cells[text][device] for text in cells]
        shown = [f"{quantity(metric, c['value'])} ({c['of_int8']:.3f})" if c["value"] is not None else "-" for c in row]
        table.add_row(device, *shown)
    console.print(table)
    reasons = dict.fromkeys(c["why"] for row in cells.values() for c in row.values() if c["why"])
    for reason in reasons:
        console.print(f"- {reason}", soft_wrap=True)
