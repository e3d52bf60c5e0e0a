"""haqsearch bench: what something costs on this machine, and what agents find. To add a sub-command: a file with
``command``, and a line in ``COMMANDS``; one that shares the options of the others: a line in ``machine.BENCHES``.
"""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS = {
    "search": "haqsearch.cli.bench.search",
    "fidelity": "haqsearch.cli.bench.fidelity",
    "learning": "haqsearch.cli.bench.learning",
    "devices": "haqsearch.cli.bench.devices",
    "bits": "haqsearch.cli.bench.bits",
    "optimum": "haqsearch.cli.bench.optimum",
}


def group() -> typer.Typer:
    """``haqsearch bench`` with its sub-commands."""
    from haqsearch.cli.bench.machine import BENCHES, measuring

    app = typer.Typer(
        no_args_is_help=True, help="Measure, on this machine: what kernels and evaluations cost, what agents find."
    )
    for name in BENCHES:
        app.command(name)(measuring(name))
    for name, module in COMMANDS.items():
        app.command(name)(import_module(module).command)
    return app
