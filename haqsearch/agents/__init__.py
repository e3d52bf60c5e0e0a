"""Search algorithms, one a file. Each is an Optuna sampler, so that storage, resume and dashboards come from Optuna.

To add one: a file with a subclass of ``Agent`` that implements ``propose``, a line in ``AGENTS``, and a subclass of
``haqsearch.testing.agent_cases.AgentCases`` in its tests. An agent outside this package is named by
``my_module:MyAgent``.

Importing this package loads neither optuna nor torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from haqsearch.errors import RecipeError

if TYPE_CHECKING:
    from haqsearch.agents.base import Agent, SpaceExhausted
    from haqsearch.agents.problem import Problem

AGENTS: dict[str, str] = {
    "funnel": "haqsearch.agents.funnel:Funnel",
    "ilp": "haqsearch.agents.ilp:ILP",
    "greedy": "haqsearch.agents.greedy:Greedy",
    "random": "haqsearch.agents.random:Random",
    "uniform": "haqsearch.agents.uniform:Uniform",
    "tpe": "haqsearch.agents.tpe:TPE",
    "ddpg": "haqsearch.agents.ddpg:DDPG",
    "evolution": "haqsearch.agents.evolution:Evolution",
    "td3": "haqsearch.agents.td3:TD3",
    "gp": "haqsearch.agents.gp:GP",
    "nsga2": "haqsearch.agents.nsga2:NSGA2",
    "nsga3": "haqsearch.agents.nsga3:NSGA3",
}

_PUBLIC = {
    "Agent": "haqsearch.agents.base",
    "Problem": "haqsearch.agents.problem",
    "SpaceExhausted": "haqsearch.agents.base",
}

__all__ = ["AGENTS", "Agent", "Problem", "SpaceExhausted", "build_agent"]


def build_agent(name: str, problem: Problem, seed: int, max_evaluations: int | None = None, **options: Any) -> Agent:
    """The agent called ``name`` (a key of ``AGENTS`` or ``module:Class``), with ``options`` for its constructor.

    ``max_evaluations`` reaches agents that take it: those with a schedule.

    Raises RecipeError for a name that is unknown or cannot be imported, a class that is no Agent, an unknown option, or an
    agent of one objective where the problem is a trade-off.
    """
    from haqsearch.agents.base import Agent

    if name not in AGENTS and ":" not in name:
        near = get_close_matches(name, AGENTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "one of your own is written my_module:MyAgent"
        raise RecipeError(f"unknown agent {name!r}: there are {', '.join(AGENTS)}; {hint}")
    module, _, attribute = AGENTS.get(name, name).partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"agent {name!r} cannot be imported: {error}") from error
    if not (inspect.isclass(kind) and issubclass(kind, Agent)):
        raise RecipeError(f"agent {name!r} is not a subclass of haqsearch.agents.Agent")
    parameters = inspect.signature(kind).parameters
    known = [p for p in parameters if p not in ("problem", "seed", "max_evaluations")]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise RecipeError(f"agent {name!r} has no option {option!r}; {hint}")
    check_tradeoff(name, kind, problem.tradeoff)
    if "max_evaluations" in parameters:
        options["max_evaluations"] = max_evaluations
    return kind(problem, seed, **options)


def check_tradeoff(name: str, kind: type[Agent], tradeoff: Sequence[str]) -> None:
    """RecipeError if there is a trade-off and agents of class ``kind``, called ``name``, improve one objective only."""
    if tradeoff and not kind.several_objectives:
        raise RecipeError(
            f"agent {name!r} improves the objective alone, and cannot trade it off against {', '.join(tradeoff)}; "
            f"these can: {', '.join(_of_several_objectives())}"
        )


def _of_several_objectives() -> Iterator[str]:
    for name, place in AGENTS.items():
        module, _, attribute = place.partition(":")
        if getattr(import_module(module), attribute).several_objectives:
            yield name


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'haqsearch.agents' has no attribute {name!r}")
