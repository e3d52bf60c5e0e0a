"""haqsearch export: a finished run's integer program in a format that another tool runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.", show_default=False)],
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="Export format.")] = "onnx",
) -> None:
    """Export the chosen policy of a finished run."""
    from safetensors import safe_open

    from haqsearch.errors import ExportError
    from haqsearch.export import exporter
    from haqsearch.runtime import load_program

    write = exporter(format)
    if not run.is_dir():
        raise ExportError(f"{run}: no such run folder; haqsearch run writes one")
    program = load_program(run / "model.safetensors")
    with safe_open(str(run / "model.safetensors"), framework="pt") as file:
        provenance = {key: text for key, text in sorted(file.metadata().items()) if key.startswith("haqsearch.")}
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent}: no such folder to write {out.name} into")
    write(program, out, provenance)
    print(f"{out}: {out.stat().st_size:,} bytes")
