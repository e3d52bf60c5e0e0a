"""haqsearch bench optimum: agents against the true optimum, on a problem small enough that every policy is scored."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import DataRoot, Overrides, RecipePath

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from haqsearch.agents.problem import Key, Problem
    from haqsearch.cli.bench.stages import Stage

    Floats = npt.NDArray[np.float64]

SCHEMA_VERSION = 1
MOST = 200_000  # policies that are scored one by one
AGENTS = ("funnel", "evolution", "random")


def command(
    recipe: RecipePath,
    agents: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation itself
        typer.Option("--agent", metavar="A", help=f"As in bench search (default: {', '.join(AGENTS)})."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 .. N - 1.")] = 20,
    evaluations: Annotated[int, typer.Option("--evaluations", min=1, help="Of every search.")] = 100,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of optimum-NAME.json.")] = Path(
        "results/search"
    ),
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Score every policy inside the budget, then see how near to the best one the agents come; and ilp on its own table."""
    from haqsearch.cli.bench.search import WORK, about, say, single_thread
    from haqsearch.cli.bench.search_page import write_page
    from haqsearch.cli.bench.stages import make_stages
    from haqsearch.errors import RecipeError
    from haqsearch.files import write_json_atomic

    single_thread()
    (stage,) = make_stages([recipe], set_ or (), data_root, out / WORK, say)
    problem = stage.assembly.problem
    if problem.space.size > MOST:
        raise RecipeError(
            f"{recipe}: {problem.space.size} policies, more than {MOST} to be scored one by one: fix more layers, or allow "
            "fewer widths"
        )
    start = time.process_time()
    table = scored(stage, say)
    seconds = time.process_time() - start
    content = {
        "schema_version": SCHEMA_VERSION,
        **about(stage),
        "feasible": len(table),
        "scoring_s": round(seconds, 1),
        "best": _best(problem, table),
        "exact": exact(problem),
        "evaluations": evaluations,
        "agents": {
            name: [searched(stage, name, seed, evaluations, table) for seed in range(seeds)]
            for name in agents or AGENTS
        },
    }
    path = out / f"optimum-{recipe.stem}.json"
    write_json_atomic(path, content)
    write_page(out)
    print(path)


def scored(stage: Stage, say: Callable[[str], None]) -> dict[Key, tuple[float, float]]:
    """(score, accuracy on the search split) of every policy inside the limits, by its indices; kept, and gone on with."""
    import numpy as np

    from haqsearch.files import write_json_atomic

    problem = stage.assembly.problem
    sizes = [len(variable.candidates) for variable in problem.space.variables]
    keys = [
        key for index in np.ndindex(*sizes) if problem.feasible(problem.space.policy(key := tuple(map(int, index))))
    ]
    file = stage.folder / f"table-{stage.assembly.recipe.digest}-{stage.assembly.weights_digest}.json"
    known: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    for done, key in enumerate(keys, start=1):
        text = ",".join(map(str, key))
        if text not in known:
            evaluation = stage.assembly.evaluator.evaluate(problem.space.policy(key))
            known[text] = [problem.objective.score(evaluation), float(evaluation.accuracy or 0.0)]
            if len(known) % 1000 == 0:
                write_json_atomic(file, known)
                say(f"{done} of {len(keys)} policies scored")
    write_json_atomic(file, known)
    return {key: (known[text][0], known[text][1]) for key in keys if (text := ",".join(map(str, key)))}


def _best(problem: Problem, table: Mapping[Key, tuple[float, float]]) -> dict[str, Any]:
    key = max(table, key=lambda k: table[k])
    layers = {layer: str(choice) for layer, choice in problem.space.policy(key).items()}
    return {"score": table[key][0], "accuracy": table[key][1], "layers": layers}


def exact(problem: Problem) -> dict[str, Any]:
    """The least sum of the sensitivity table inside the limits, by ilp's solver and by trying every policy."""
    import numpy as np

    from haqsearch.agents.assignment import Assignment

    losses = [np.array(row) for row in problem.sensitivity.losses(problem.space)]
    solver = Assignment(problem)
    start = time.process_time()
    found = solver.solve(losses)
    seconds = time.process_time() - start
    sizes = [len(variable.candidates) for variable in problem.space.variables]
    keys = np.stack([axis.ravel() for axis in np.meshgrid(*[np.arange(n) for n in sizes], indexing="ij")], 1)
    sums = np.sum([row[keys[:, v]] for v, row in enumerate(losses)], axis=0)
    near = (solver.shares(keys) <= 1 + 1e-9).all(axis=0)
    order = np.flatnonzero(near)[np.argsort(sums[near], kind="stable")]
    first = next(int(i) for i in order if problem.feasible(problem.space.policy([int(c) for c in keys[i]])))
    solved = float(sum(row[c] for row, c in zip(losses, found, strict=True)))
    return {"solver": solved, "enumerated": float(sums[first]), "solver_s": round(seconds, 4)}


def searched(
    stage: Stage, agent: str, seed: int, evaluations: int, table: Mapping[Key, tuple[float, float]]
) -> dict[str, Any]:
    """One search on the table: its best score and accuracy, how many policies are better, and when it was found."""
    from haqsearch.agents import build_agent
    from haqsearch.cli.bench.cells import Entrant
    from haqsearch.search.loop import run_search
    from haqsearch.search.pool import SerialPool
    from haqsearch.search.records import best_of, read_records
    from haqsearch.search.storage import study_in_memory
    from haqsearch.spec import Evaluation, Policy

    problem, entrant = stage.assembly.problem, Entrant.parse(agent)

    def evaluate(policy: Policy) -> Evaluation:
        score, accuracy = table[problem.space.indices(policy)]
        scores: dict[str, Any] = {"accuracy": accuracy, problem.objective.name: problem.objective.sign * score}
        return replace(Evaluation(accuracy, None, None, 0, 0.0), **scores)

    study = study_in_memory(problem.directions)
    chosen = build_agent(entrant.name, problem, seed, evaluations, **entrant.options)
    run_search(problem, chosen, SerialPool(evaluate), study, evaluations)
    best = best_of(read_records(study))
    assert best is not None and best.score is not None, "every policy of the table is inside the limits"
    better = sum(score > best.score for score, _ in table.values())
    return {
        "seed": seed,
        "score": best.score,
        "accuracy": table[problem.space.indices(best.policy)][1],
        "better": better,
        "found_at": best.number + 1,
    }


# -- the page ---------------------------------------------------------------------------------------------------------

_HEAD = """
Problems small enough that every policy inside the budget is scored, so that the true best is known.
"""


def section(folder: Path) -> list[str]:
    """The table of every ``optimum-*.json``, for ``search_page``."""
    lines: list[str] = []
    for path in sorted(folder.glob("optimum-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"\n### {found['recipe']}\n", *_table(found)]
    return ["\n## Against the true optimum\n", _HEAD.strip(), *lines] if lines else []


def _table(found: Mapping[str, Any]) -> list[str]:
    from statistics import median

    best, exact, sign, where = found["best"], found["exact"], found["objective_sign"], found["environment"]
    head = [
        "agent",
        "seeds",
        "best found",
        f"{found['objective']}, median",
        "worst",
        "points below the best, worst",
        "found at, median",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in found["agents"].items():
        scores = [run["score"] for run in runs]
        gaps = [100 * (best["accuracy"] - run["accuracy"]) for run in runs]
        cells = [
            f"`{name}`",
            str(len(runs)),
            f"{sum(run['better'] == 0 for run in runs)} times",
            f"{sign * median(scores):.5g}",
            f"{sign * min(scores):.5g}",
            f"{max(gaps):.2f}",
            f"{median(run['found_at'] for run in runs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    proven = abs(exact["solver"] - exact["enumerated"]) <= 1e-9 * abs(exact["enumerated"])
    return [
        *lines,
        "",
        f"{found['model']} on {found['data']}, {found['hardware']}, `{'; '.join(found['budget'])}`: {found['feasible']:,} of "
        f"{found['space']:,.0f} policies are inside the budget, and all were scored ({found['scoring_s']:.0f} s of the "
        f"processor); the best has {found['objective']} {sign * best['score']:.5g}, accuracy {best['accuracy']:.2%} on "
        f"{found['splits']['search']:,} search samples. {found['evaluations']} evaluations for every search. "
        f"The least sum of the sensitivity table is {exact['enumerated']:.9g} by enumeration and {exact['solver']:.9g} by "
        f"`ilp`'s solver, in {1e3 * exact['solver_s']:.0f} ms: {'the same' if proven else 'NOT the same'}. "
        f"Made by `haqsearch bench optimum`, commit {where['commit']}: {where['processor']}, torch {where['torch']}.",
    ]
