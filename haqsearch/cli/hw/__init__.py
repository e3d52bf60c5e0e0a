"""haqsearch hw: devices. To add a sub-command: a file with ``command``, and a line in ``COMMANDS``."""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS = {
    "list": "haqsearch.cli.hw.listing",
    "show": "haqsearch.cli.hw.show",
    "check": "haqsearch.cli.hw.check",
    "new": "haqsearch.cli.hw.new",
    "compare": "haqsearch.cli.hw.compare",
    "measure": "haqsearch.cli.hw.measure",
    "validate": "haqsearch.cli.hw.validate",
}


def group() -> typer.Typer:
    """``haqsearch hw`` with its sub-commands."""
    app = typer.Typer(
        no_args_is_help=True, help="Devices: what there is, what it can do, how far to trust it, how to add one."
    )
    for name, module in COMMANDS.items():
        app.command(name)(import_module(module).command)
    return app
