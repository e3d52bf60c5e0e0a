"""haqsearch hw list: the devices that come with the package."""

from __future__ import annotations

from typing import Any

import typer

from haqsearch.cli.options import AsJson


def command(json: AsJson = False) -> None:
    """The devices that come with the package; a device of your own is a path ending in .toml, or module:function."""
    from hwmodels import list_profiles

    devices = [_about(name) for name in list_profiles()]
    if json:
        from json import dumps

        print(dumps(devices, indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column("device", no_wrap=True)
    table.add_column("batch", justify="right")
    table.add_column("what it is", overflow="fold")
    for device in devices:
        table.add_row(device["name"], str(device["batch"]), device["summary"])
    Console(highlight=False).print(table)
    typer.echo("haqsearch hw show NAME: what a device can do, and where its numbers come from.")


def _about(name: str) -> dict[str, Any]:
    from hwmodels import load

    device = load(name)
    return {
        "name": device.name,
        "summary": device.summary,
        "batch": device.default_batch,
        "metrics": list(device.metrics),
        "draft": device.draft,
    }
