"""haqsearch formats: every number format, its effective bits, and where it can be used."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated, Any, Optional

import typer

from haqsearch.spec import Format
from haqsearch.spec.formats import KINDS, NAMES

# Integers of any width with any of the suffixes; these stand for them in the table.
_EXAMPLES = ("int4:tensor", "int4:group=16", "int4:group=128", "uint4:channel", "uint4:group=128")


def command(
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation itself
        typer.Argument(metavar="FORMAT", help="One format, such as int4:group=16 (default: all).", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Number formats: effective bits per element, and where each can be used."""
    if name is not None:
        formats = [Format.of(name)]
    else:
        every = [*NAMES.values(), *map(Format.of, _EXAMPLES)]
        formats = [format for kind in KINDS for format in every if format.kind == kind]
    if json:
        from json import dumps

        print(dumps([_about(format) for format in formats], indent=2))
        return
    _print(formats, whole=name is None)


def _about(format: Format) -> dict[str, Any]:
    return {
        "format": str(format),
        "family": format.kind,
        "bits": format.bits,
        "uses": list(format.uses),
        "in_programs": format.in_programs,
        "computed_as": str(format.computed_as) if format.in_programs else None,
        "summary": KINDS[format.kind].summary,
    }


def _print(formats: list[Format], whole: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for column in ("format", "bits", "used for"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is", overflow="fold")
    told = ""
    for _, group in groupby(formats, key=lambda f: (f.kind, f.uses, f.granularity, f.group)):
        members = list(group)
        for run in _runs(members):
            summary = KINDS[run[0].kind].summary if run[0].kind != told else ""
            told = run[0].kind
            table.add_row(_ends([str(f) for f in run]), _ends([f"{f.bits:g}" for f in run]), _used_for(run[0]), summary)
    console.print(table)
    if whole:
        console.print("int and uint of 1 to 16 bits also take :tensor, :channel and :group=N.")
    console.print("Bits are those of an element with its share of what grows with the elements.")
    console.print("Tensors only: haqsearch.quant.encode(tensor, FORMAT), not recipes and policies.")


def _runs(formats: list[Format]) -> list[list[Format]]:
    """``formats`` cut where the width does not go on by one."""
    runs: list[list[Format]] = []
    for format in formats:
        if runs and format.width == runs[-1][-1].width + 1:
            runs[-1].append(format)
        else:
            runs.append([format])
    return runs


def _ends(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{texts[0]} .. {texts[-1]}"


def _used_for(format: Format) -> str:
    roles = [use for use in format.uses if use != "tensors"]
    return ", ".join(roles) or "tensors only"
