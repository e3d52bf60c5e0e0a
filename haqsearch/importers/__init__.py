"""Policies that other tools found, as policies of ours: to re-score them, or to start a search from them.

To add a tool: a file with ``read(text, model, where) -> Imported``, a line in ``IMPORTERS``, and examples in the tool's own
form in its tests. A policy is then named ``TOOL:FILE`` wherever a policy file is.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from haqsearch.errors import PolicyError
from haqsearch.importers.layers import Imported
from haqsearch.spec import ModelSpec

IMPORTERS: dict[str, str] = {
    "haq": "haqsearch.importers.haq",
    "nncf": "haqsearch.importers.nncf",
    "mct": "haqsearch.importers.mct",
}

__all__ = ["IMPORTERS", "Imported", "import_policy"]


def import_policy(tool: str, path: Path, model: ModelSpec) -> Imported:
    """The policy that ``tool`` (a key of ``IMPORTERS``) wrote to ``path``, for the layers of ``model``, and what was assumed.

    Raises PolicyError for an unknown tool, a file that is missing or not of its form, or layers that do not fit.
    """
    if tool not in IMPORTERS:
        near = get_close_matches(tool, IMPORTERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(IMPORTERS)}"
        raise PolicyError(f"{tool}:{path}: policies of {tool!r} cannot be read; {hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{tool}:{path}: not readable ({error})") from None
    imported: Imported = import_module(IMPORTERS[tool]).read(text, model, f"{tool}:{path}")
    return imported
