"""The command line, one sub-command a file. To add one: a file with ``command`` (or a ``group`` of them), and a
line in ``COMMANDS``.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

COMMANDS = {
    "run": "haqsearch.cli.run",
    "inspect": "haqsearch.cli.inspect",
    "cost": "haqsearch.cli.cost",
    "evaluate": "haqsearch.cli.evaluate",
    "export": "haqsearch.cli.export",
    "sensitivity": "haqsearch.cli.sensitivity",
    "what-if": "haqsearch.cli.what_if",
    "results": "haqsearch.cli.results",
    "formats": "haqsearch.cli.formats",
    "ptq-table": "haqsearch.cli.ptq_table",
    "bench": "haqsearch.cli.bench",
    "hw": "haqsearch.cli.hw",
}

_INTERRUPTED = 130  # what typer makes of Ctrl-C


def build_app() -> typer.Typer:
    """The command with all its sub-commands."""
    import typer

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Per-layer bit-widths under a device's budget.",
    )
    for name, module in COMMANDS.items():
        found = import_module(module)
        if hasattr(found, "group"):
            app.add_typer(found.group(), name=name)
        else:
            app.command(name)(found.command)
    return app


def main() -> None:
    """Entry point. A mistake of the user's ends with one line on standard error and exit code 2, never a traceback."""
    # Before torch is loaded: OpenMP's threads spin while they wait, which on a busy machine slows small networks twentyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from haqsearch.errors import HaqError

    try:
        code = build_app()(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except HaqError as error:
        _fail(str(error))
    except OSError as error:  # no space, no permission, a folder where a file should be
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
            raise
        _fail(f"{error.format_message()} (haqsearch COMMAND --help shows what there is)")
    if code == _INTERRUPTED:
        print("\nhaqsearch: stopped; the same command goes on from here", file=sys.stderr)
    sys.exit(code or 0)


def _fail(message: str) -> NoReturn:
    print("haqsearch:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
