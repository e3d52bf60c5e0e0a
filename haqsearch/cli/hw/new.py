"""haqsearch hw new: a device file to fill in, from one that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

_HEAD = """\
# A device of your own, begun from {base}: replace every number by your data sheet's and say there where it is from.
# Units are in the keys. Then: haqsearch hw check {path}; haqsearch hw show {path}; hwmodels/README.md explains every key.
"""


def command(
    base: Annotated[str, typer.Option("--from", metavar="DEVICE", help="A device of hw list that is built alike.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("my_device.toml"),
) -> None:
    """Write a device file to fill in: the keys and comments of a device that is built alike, without its sources."""
    from haqsearch.errors import HardwareError
    from haqsearch.files import write_text_atomic
    from hwmodels.profile import PROFILES, list_profiles

    if base not in list_profiles():
        raise HardwareError(f"--from {base}: no such device; there are {', '.join(list_profiles())}")
    if out.suffix != ".toml":
        raise HardwareError(f"--out {out}: a device file ends in .toml")
    if out.exists():
        raise HardwareError(f"--out {out}: there is a file already; give another name or remove it")
    text = template((PROFILES / f"{base}.toml").read_text(encoding="utf-8"), out.stem)
    write_text_atomic(out, _HEAD.format(base=base, path=out) + text)
    typer.echo(f"{out}: fill it in, then haqsearch hw check {out}")


def template(text: str, name: str) -> str:
    """The profile ``text`` under another name: a draft without sources, measured table and the comment it begins with."""
    text = re.sub(r"\A(#.*\n)+", "", text)
    text = re.sub(r'^name = ".*"$', f'name = "{name}"', text, count=1, flags=re.MULTILINE)
    text = re.sub(
        r"^sources = \[.*?^\]$|^sources = \[.*\]$",
        'sources = []                            # e.g. "my board\'s data sheet, table 3"; without any, this is a draft',
        text,
        count=1,
        flags=re.MULTILINE | re.DOTALL,
    )
    return re.sub(r"^\[table\]\n(?:[^\[\n].*\n|\n)*", "", text, flags=re.MULTILINE)
