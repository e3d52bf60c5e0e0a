"""Names in a recipe: of the zoo, of the user's own modules, and of files beside the recipe or under a data root."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from haqsearch.errors import DataError, HaqError, RecipeError

RECIPE_FILE = "recipe.toml"  # in a run folder, the recipe as resolved


def data_roots(option: Path | None) -> list[Path]:
    """Folders searched for data and weights: --data-root, HAQSEARCH_DATA (several, as PATH), ./data, ../shared/data."""
    named = [str(option)] if option else []
    named += [part for part in os.environ.get("HAQSEARCH_DATA", "").split(os.pathsep) if part]
    for folder in named:
        if not Path(folder).is_dir():
            raise DataError(f"data root {folder}: no such folder")
    return [Path(folder) for folder in [*named, "data", "../shared/data"] if Path(folder).is_dir()]


@dataclass(frozen=True)
class Names:
    """Where names are looked up: ``base``, the folder of the recipe, and ``roots``, the data roots."""

    base: Path
    roots: tuple[Path, ...]

    def function(self, key: str, text: str, known: Mapping[str, str]) -> Any:
        """The function that a zoo name or ``my_module:function`` stands for. RecipeError with the mend otherwise."""
        if text not in known and ":" not in text:
            near = get_close_matches(text, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "one of your own is written my_module:function"
            raise RecipeError(f"{key} = {text!r}: there are {', '.join(known)}; {hint}")
        module, _, attribute = known.get(text, text).partition(":")
        with self.users_code(f"{key} = {text!r}"):
            try:
                found = getattr(import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                raise RecipeError(f"{key} = {text!r} cannot be imported: {error}") from error
        if not callable(found):
            raise RecipeError(f"{key} = {text!r} is a {type(found).__name__}, not a function")
        return found

    @contextmanager
    def users_code(self, what: str) -> Iterator[None]:
        """Where code of the user's may run: its modules are found, and what it raises becomes one line with the place."""
        with _import_paths(self.base):
            try:
                yield
            except HaqError:
                raise
            except Exception as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{frame.filename}:{frame.lineno}"
                raise RecipeError(f"{what} raised {type(error).__name__}: {error} ({place}); mend it there") from error

    def file(self, name: str) -> Path:
        """A file by its path from here, from the recipe's folder, or under a data root; DataError if it is in none."""
        places = [Path(), self.base, *self.roots]
        for place in places:
            if (place / name).is_file():
                return place / name
        raise DataError(
            f"{name}: no such file here, beside the recipe or in a data root ({', '.join(map(str, self.roots)) or 'none'})"
        )


class _import_paths:
    """While it holds, modules are found from the current folder and from the recipe's."""

    def __init__(self, base: Path) -> None:
        self.paths = [path for path in (str(Path.cwd()), str(base.resolve())) if path not in sys.path]

    def __enter__(self) -> None:
        sys.path[:0] = self.paths

    def __exit__(self, *_: object) -> None:
        for path in self.paths:
            sys.path.remove(path)
