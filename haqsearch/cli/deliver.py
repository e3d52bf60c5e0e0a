"""A run's outcome as files: the integer program, its ONNX model and its policy; and the way back to a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import haqsearch
from haqsearch.cli.assemble import Assembly
from haqsearch.cli.finish import Candidate
from haqsearch.cli.names import RECIPE_FILE, data_roots
from haqsearch.cli.outcome import policy_json
from haqsearch.config import load_recipe
from haqsearch.errors import HaqError, SearchError
from haqsearch.files import write_json_atomic


def write_program(a: Assembly, best: Candidate, folder: Path, format: str = "onnx") -> list[str]:
    """Write ``model.safetensors``, ``policy.json`` and the exported file (``export.file_name``) into ``folder``.

    Returns what could not be said: a network that the format cannot hold (a float region, in ONNX) gives everything else.
    """
    from haqsearch.export import exporter, file_name
    from haqsearch.runtime import save_program

    write = exporter(format)
    metadata = {"haqsearch.policy_digest": best.policy.digest, "haqsearch.version": haqsearch.__version__}
    save_program(best.program, folder / "model.safetensors", metadata)
    write_json_atomic(folder / "policy.json", policy_json(a, best))
    try:
        write(best.program, folder / file_name(format), metadata)
    except HaqError as error:
        return [f"no {file_name(format)}: {error}"]
    return []


def reopen(folder: Path, recipe: Path | None, data_root: Path | None) -> Assembly:
    """The assembly of the run in ``folder``, from the recipe it keeps.

    ``recipe`` is the file the run was started with: where a module or a device of the user's lies beside it, and nowhere
    on the way from here, it says where. SearchError if there is no run, or if that recipe is another search's.
    """
    kept = folder / RECIPE_FILE
    if not folder.is_dir():
        raise SearchError(f"{folder}: no such run folder; haqsearch run writes one")
    if not kept.is_file():
        raise SearchError(f"{folder}: no {RECIPE_FILE} here; give the folder that haqsearch run wrote")
    own = load_recipe(kept)
    if recipe is not None and load_recipe(recipe).digest != own.digest:
        raise SearchError(f"{recipe}: not the recipe of the search in {folder}; leave --recipe out, or give that one")
    return Assembly(own, recipe.parent if recipe else folder, tuple(data_roots(data_root)), folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder. SearchError if it is missing or damaged."""
    if not path.parent.is_dir():
        raise SearchError(f"{path.parent}: no such run folder; haqsearch run writes one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SearchError(f"{path}: missing; the run has not ended, give its command again to go on") from None
    except ValueError as error:
        raise SearchError(f"{path}: cannot be read as JSON ({error}); run the recipe again to rewrite it") from None
    if not isinstance(found, dict):
        raise SearchError(f"{path}: holds a {type(found).__name__}, not an object; run the recipe again to rewrite it")
    return found
