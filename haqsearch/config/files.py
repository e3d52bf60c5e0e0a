"""Recipes read from TOML files and written to them. An unknown key is an error that says what was probably meant."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from haqsearch.config.recipe import Recipe
from haqsearch.config.sections import Section
from haqsearch.errors import HaqError, RecipeError


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Recipe in the TOML file ``path`` with ``key=value`` overrides applied (dotted keys, TOML values or bare words).

    Raises RecipeError that names file, key and mend.
    """
    if not path.is_file():
        beside = [p.stem for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        near = get_close_matches(path.stem, beside, n=1, cutoff=0.5)
        raise RecipeError(f"no recipe {path}" + (f"; did you mean {path.parent / near[0]}.toml?" if near else ""))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    for text in overrides:
        _override(content, text)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {'; '.join(_explain(error, content))}") from None
    except HaqError as error:
        raise RecipeError(f"{path}: {error}") from None


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r}: write key=value, for example qat.steps=200")
    *parents, last = key.strip().split(".")
    section = content
    for parent in parents:
        inner = section.setdefault(parent, {})
        field = Recipe.model_fields.get(parent) if section is content else None
        if not isinstance(inner, dict) or (field is not None and not isinstance(field.get_default(), dict | Section)):
            raise RecipeError(f"--set {text!r}: {parent!r} is no section")
        section = inner
    try:
        section[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        section[last] = value.strip()


def _explain(error: ValidationError, content: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each mistake pydantic found."""
    for item in error.errors():
        place = [str(part) for part in item["loc"]]
        key = ".".join(place)
        if item["type"] == "extra_forbidden":
            section: Any = Recipe
            for part in place[:-1]:
                section = section.model_fields[part].annotation
            near = get_close_matches(place[-1], section.model_fields, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(section.model_fields)}"
            yield f"unknown key {key!r}; {known}"
        elif item["type"] == "missing":
            yield f"key {key!r} is missing"
        else:
            message = item["msg"].removeprefix("Value error, ")
            yield f"{key} = {item['input']!r}: {message[:1].lower()}{message[1:]}"


def flat(recipe: Recipe) -> dict[str, str]:
    """Every key of the recipe, dotted, with its value as TOML."""
    found: dict[str, str] = {}
    for key, value in recipe.model_dump(mode="json").items():
        section = value if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{name}".rstrip("."): _toml(v) for name, v in section.items()}
    return found


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every default written out."""
    content = recipe.model_dump(mode="json")
    lines = [
        f"{key} = {_toml(value)}" for key, value in content.items() if not isinstance(value, dict) or key == "fixed"
    ]
    for key, value in content.items():
        if isinstance(value, dict) and key != "fixed":
            lines += ["", f"[{key}]", *[f"{name} = {_toml(v)}" for name, v in value.items() if v is not None]]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)
