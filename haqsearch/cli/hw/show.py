"""haqsearch hw show: what a device can do at every width pair, and where its numbers come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haqsearch.cli.options import AsJson

if TYPE_CHECKING:
    from hwmodels import HardwareModel

DeviceName = Annotated[
    str, typer.Argument(metavar="DEVICE", help="A name of hw list, a TOML file, or module:function.")
]


def command(
    name: DeviceName,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also draw the roofline as a page for the browser.")
    ] = None,
    json: AsJson = False,
) -> None:
    """A device: its peaks by width pair, its ridge points, its roofline, and the sources of its numbers."""
    from hwmodels import load, roofline

    device = load(name)
    about = {
        "name": device.name,
        "summary": device.summary,
        "batch": device.default_batch,
        "metrics": list(device.metrics),
        "draft": device.draft,
        "digest": device.digest,
        **_said(device),
        **roofline.as_json(device),
    }
    if html is not None:
        from haqsearch.report.hardware import write_roofline

        write_roofline(html, about)
    if json:
        from json import dumps

        print(dumps(about, indent=2))
        return
    _print(about, roofline.picture(device))


def _said(device: HardwareModel) -> dict[str, Any]:
    """What only a profile says: clock, sources, and the numbers that have none."""
    profile = getattr(device, "profile", None)
    if profile is None:
        return {"frequency_hz": None, "sources": [], "assumed": []}
    return {
        "frequency_hz": profile.clock.frequency_hz,
        "sources": list(profile.sources),
        "assumed": list(profile.assumed),
    }


def _print(about: dict[str, Any], picture: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(f"{about['name']}: {about['summary']}", soft_wrap=True)
    clock = f"{about['frequency_hz'] / 1e6:g} MHz, " if about["frequency_hz"] else ""
    bandwidth = about["bandwidth_bytes_per_s"]
    memory = f", {bandwidth / 1e9:.3g} GB/s to outer memory" if bandwidth else ""
    console.print(f"{clock}batch {about['batch']}{memory}; gives {', '.join(about['metrics'])}", soft_wrap=True)
    if about["roofs"]:
        table = Table(box=SIMPLE_HEAD, padding=0, collapse_padding=True)
        for column in ("weights", "activations", "peak GMAC/s", "of the widest", "ridge MAC/byte"):
            table.add_column(column, justify="right", no_wrap=True)
        widest = about["roofs"][-1]["peak_macs_per_s"]
        for roof in _told_apart(about["roofs"]):
            ridge = roof["ridge_macs_per_byte"]
            table.add_row(
                str(roof["weight_bits"]),
                str(roof["activation_bits"]),
                f"{roof['peak_macs_per_s'] / 1e9:.4g}",
                f"{roof['peak_macs_per_s'] / widest:.3g} x",
                f"{ridge:.3g}" if ridge else "-",
            )
        console.print(table)
        if len(about["roofs"]) > len(_told_apart(about["roofs"])):
            console.print("Equal widths and 8-bit partners are shown; --json has every pair.")
    for line in picture:
        console.print(line, soft_wrap=True)
    for heading in ("sources", "assumed"):
        for entry in about[heading]:
            console.print(f"{heading.rstrip('s') if heading == 'sources' else heading}: {entry}", soft_wrap=True)


def _told_apart(roofs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All pairs if they are few, else those of equal widths and those with 8 bits on one side."""
    if len(roofs) <= 16:
        return roofs
    return [
        r for r in roofs if r["weight_bits"] == r["activation_bits"] or 8 in (r["weight_bits"], r["activation_bits"])
    ]
