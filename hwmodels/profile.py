"""Finds a device by name, by TOML file or by Python path, and says in one line what is wrong with its profile."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from haqsearch.errors import HardwareError
from hwmodels.base import HardwareModel
from hwmodels.schema import Profile, ProfiledDevice, TableFile

PROFILES = Path(__file__).parent / "profiles"

# Every compute kind: the value of [compute] kind -> where its profile class is.
KINDS = {
    "affine": "hwmodels.affine:AffineProfile",
    "bit_serial": "hwmodels.bitserial:BitSerialProfile",
    "lanes": "hwmodels.lanes:LanesProfile",
    "rates": "hwmodels.rates:RatesProfile",
    "spatial": "hwmodels.spatial:SpatialProfile",
}


def list_profiles() -> tuple[str, ...]:
    """Names of the devices that come with the package, in alphabetical order."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load(device: str | Path) -> HardwareModel:
    """The device named ``device``: a bundled profile (``bismo-edge``), a TOML file (``boards/mine.toml``), or a Python
    callable without arguments that returns a HardwareModel (``my_package.devices:build``).

    Raises HardwareError: no such device, a file that is not a profile, a key or value that is wrong.
    """
    text = str(device)
    if text in list_profiles():
        return _read(PROFILES / f"{text}.toml")
    if text.endswith(".toml") or "/" in text or isinstance(device, Path):
        return _read(Path(device))
    if ":" in text:
        return _build(text)
    near = get_close_matches(text, list_profiles(), n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known devices: {', '.join(list_profiles())}."
    raise HardwareError(
        f"unknown device {text!r}; {hint} A device of your own is a path ending in .toml, or module:function"
    )


def _read(path: Path) -> HardwareModel:
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise HardwareError(f"{path}: cannot read this device profile: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise HardwareError(f"{path}: not a TOML file: {error or 'nested too deeply'}") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise HardwareError(f"{path}: not a TOML file: {_one_line(str(error))}") from None
    return parse(data, str(path))


def parse(data: dict[str, Any], where: str) -> HardwareModel:
    """Device from the content of a profile. Raises HardwareError with ``where``, the key, the value and the mend."""
    compute = data.get("compute")
    kind = compute.get("kind") if isinstance(compute, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        near = get_close_matches(str(kind), KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; write one of {', '.join(KINDS)}"
        found = f"{_shown(kind)} is not a compute kind" if kind is not None else "missing"
        raise HardwareError(f"{where}: compute.kind: {found}{hint}")
    module, _, name = KINDS[kind].partition(":")
    profile_class: type[Profile] = getattr(import_module(module), name)
    try:
        profile = profile_class.model_validate(data)
    except ValidationError as error:
        raise HardwareError(f"{where}: {_explain(error, profile_class)}") from None
    device = profile.device()
    return device if profile.table is None else _with_table(device, profile.table, where)


def _with_table(device: ProfiledDevice[Any], section: TableFile, where: str) -> HardwareModel:
    from hwmodels.overlay import Measured
    from hwmodels.table import read

    path = Path(where).parent / section.file
    if "\0" in section.file or not path.is_file():
        raise HardwareError(f"{where}: table.file = {_shown(section.file)}: no such file beside the profile")
    return Measured(device, read(path), section.extrapolation)


def _build(path: str) -> HardwareModel:
    module, _, name = path.partition(":")
    try:
        build = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise HardwareError(f"device {path!r}: cannot import it: {_one_line(str(error))}") from None
    device = build() if callable(build) else build
    if not isinstance(device, HardwareModel):
        raise HardwareError(f"device {path!r}: gives a {type(device).__name__}, not a hwmodels.HardwareModel")
    return device


def _explain(error: ValidationError, profile: type[BaseModel]) -> str:
    """The first thing to mend, as one line. An unknown key comes first: it is often why another one is missing."""
    # An override repeats what is wrong in the table that it completes: the shorter place is where it was written.
    problems = sorted(
        error.errors(include_url=False), key=lambda problem: (problem["type"] != "extra_forbidden", len(problem["loc"]))
    )
    problem, more = problems[0], len(problems) - 1
    location, value = problem["loc"], _shown(problem["input"])
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        known = _keys(profile, location[:-1])
        near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        text = f"{key}: unknown key; " + (
            f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"
        )
    elif problem["type"] == "missing":
        text = f"{key}: missing; every number of a device has to be given, with the unit its key names"
    else:
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        # A rule about several keys of one table names them itself.
        about_a_table = problem["type"] == "value_error" and isinstance(problem["input"], dict)
        text = (f"{key}: " if key else "") + message if about_a_table else f"{key} = {value}: {message}"
    return _one_line(text) + (f" (and {more} more)" if more else "")


def _keys(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Keys that the table at ``location`` may hold; an integer in it is the place in a list of tables."""
    for part in location:
        if isinstance(part, str):
            field = next(f for name, f in model.model_fields.items() if part in (name, f.alias))
            model = next(_models(field.annotation))
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Tables inside an annotation such as ``list[Level] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _shown(value: Any) -> str:
    """``value`` as the reader wrote it, shortened."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
