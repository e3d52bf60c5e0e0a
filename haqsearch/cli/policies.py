"""Policies that are named in a recipe or on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from haqsearch.errors import HardwareError, PolicyError
from haqsearch.spec import Choice, Policy

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly


def load_policy(text: str, assembly: Assembly, say: Callable[[str], None] = lambda sentence: None) -> Policy:
    """``uniform:w4a8`` (the recipe's fixed layers keep theirs), a policy file, or another tool's (``haq:FILE``), checked
    against the model.

    ``say`` hears what another tool's file leaves open. A file that names another model's weights is refused.
    """
    from haqsearch.importers import IMPORTERS, import_policy

    spec = assembly.prepared.spec
    if text.startswith("uniform:"):
        return Policy.uniform(spec, Choice.parse(text.removeprefix("uniform:")), assembly.recipe.fixed_choices)
    tool, colon, name = text.partition(":")
    path = Path(name if colon and not Path(text).is_file() else text)
    if not path.is_file() and (assembly.base / path).is_file():
        path = assembly.base / path
    if colon and not Path(text).is_file():
        imported = import_policy(tool, path, spec)
        for note in imported.notes:
            say(f"{text}: {note}")
        return imported.policy
    if not path.is_file():
        tools = ", ".join(f"{tool}:FILE" for tool in IMPORTERS)
        raise PolicyError(f"{text}: no such policy file; write a file's path, uniform:w4a8, or another tool's: {tools}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: not valid JSON: {error}") from None
    return Policy.from_json(content, str(path)).check(spec, str(path))


def check_policy_widths(policy: Policy, assembly: Assembly) -> None:
    """Raise PolicyError or HardwareError if the device or the integer kernels lack a width the policy asks for."""
    for layer in assembly.prepared.spec.quantizable:
        choice = policy[layer.name]
        for format in (choice.weight, choice.activation):
            if format.is_float or format.width > 8:
                raise PolicyError(f"layer {layer.name!r}: integer programs take 2 to 8 bits, not {format}")
        if not assembly.device.supports(layer, choice.computed):
            raise HardwareError(f"{assembly.device.name} does not support {choice} in layer {layer.name!r}")


def about_warm_starts(assembly: Assembly) -> Iterator[str]:
    """What there is to say of each warm start: what its file leaves open, and what the space or the budget makes of it."""
    from haqsearch.agents.repair import repair

    problem = assembly.problem
    for text, given in zip(assembly.recipe.warm_start, assembly.warm_starts, strict=True):
        said: list[str] = []
        load_policy(text, assembly, said.append)
        yield from said
        wish = problem.space.nearest(given)
        if moved := sum(wish[layer] != given[layer] for layer in given):
            yield f"{text}: {moved} of {len(given)} layers moved to the nearest formats of the search space"
        if excess := problem.violation(wish):
            policy = repair(problem, wish, problem.known_feasible)
            cut = sum(wish[layer] != policy[layer] for layer in wish)
            yield f"{text}: exceeds the budget by {excess:.1%}; bits of {cut} layers are cut until it fits"
