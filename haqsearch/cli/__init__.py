"""The command line, one sub-command a file. To add one: a file with ``command``, and a line in ``COMMANDS``."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "run": "haqsearch.cli.run",
    "inspect": "haqsearch.cli.inspect",
    "cost": "haqsearch.cli.cost",
    "evaluate": "haqsearch.cli.evaluate",
    "export": "haqsearch.cli.export",
}


def main() -> None:
    """Entry point. A mistake of the user's ends with one line on standard error and exit code 2, never a traceback."""
    import typer

    from haqsearch.errors import HaqError

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Per-layer bit-widths under a device's budget.",
    )
    for name, module in COMMANDS.items():
        app.command(name)(import_module(module).command)
    try:
        app()
    except HaqError as error:
        message = " ".join(str(error).split())
        print(f"haqsearch: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nhaqsearch: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
