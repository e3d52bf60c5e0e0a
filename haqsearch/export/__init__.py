"""Exporters, one format a file: (IntegerProgram, path, metadata) -> a file another tool runs.

To add one: a file with such a function, and a line in ``EXPORTERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from haqsearch.errors import ExportError

if TYPE_CHECKING:
    from haqsearch.runtime import IntegerProgram

    Exporter = Callable[[IntegerProgram, Path, Mapping[str, str]], None]

EXPORTERS = {
    "onnx": "haqsearch.export.onnx_qdq:export",
    "onnx-integer": "haqsearch.export.onnx_integer:export",
}
"""Name of a format -> the function that writes it."""


def file_name(format: str) -> str:
    """Name of a run's exported file: the format's parts from the last to the first, as in model.integer.onnx of onnx-integer."""
    return ".".join(["model", *reversed(format.split("-"))])


def exporter(name: str) -> Exporter:
    """The exporter of format ``name``; ExportError names the known ones otherwise."""
    if name not in EXPORTERS:
        near = get_close_matches(name, EXPORTERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ExportError(f"no export format {name!r}; known: {', '.join(EXPORTERS)}{hint}")
    module, _, attribute = EXPORTERS[name].partition(":")
    return getattr(import_module(module), attribute)
