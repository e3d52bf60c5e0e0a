"""haqsearch hw check: whether a device file can be read, and whether its numbers can be those of a machine."""

from __future__ import annotations

import typer

from haqsearch.cli.hw.show import DeviceName
from haqsearch.cli.options import AsJson


def command(name: DeviceName, json: AsJson = False) -> None:
    """Check a device: schema, units, magnitudes, what fewer bits do, missing sources.

    A file that cannot be used is an error, exit code 2, with the key and the mend; what only looks wrong is a warning.
    """
    from hwmodels import load, physics

    device = load(name)
    found = physics.warnings(device)
    if json:
        from json import dumps

        print(dumps({"device": device.name, "draft": device.draft, "warnings": found}, indent=2))
        return
    for line in found:
        typer.echo(f"warning: {line}")
    typer.echo(f"{name}: can be used; {len(found) or 'no'} warning{'' if len(found) == 1 else 's'}")
