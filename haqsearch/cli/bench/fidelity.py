"""haqsearch bench fidelity: does a cheap score rank policies as a dear one does, and which objective as the report split?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from haqsearch.cli.bench.ranks import interval, rank_agreement, resampled, spearman
from haqsearch.cli.options import DataRoot, Overrides, RecipePath
from haqsearch.spec import OBJECTIVES

if TYPE_CHECKING:
    from haqsearch.agents import Problem
    from haqsearch.cli.bench.stages import Stage
    from haqsearch.cli.finish import Candidate
    from haqsearch.evaluate.cache import Scored
    from haqsearch.spec import Policy, Sensitivity

SCHEMA_VERSION = 1
PARTS = (100, 250, 500)  # samples of the search split
LEADERS, CHANGES = 5, 4  # a good policy is one of the best so far, with up to so many variables changed
RANDOM, GOOD = "random", "good"
SENSITIVITY = "sensitivity"


def command(
    recipe: RecipePath,
    policies: Annotated[int, typer.Option("--policies", min=4, help="Policies drawn, half at random.")] = 60,
    accurate: Annotated[
        int,
        typer.Option("--accurate", min=0, help="So many of them, over all ranks, are rounded in network order too."),
    ] = 12,
    trained: Annotated[
        int, typer.Option("--trained", min=0, help="So many of these are fine-tuned, too, as the recipe's qat says.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of fidelity-NAME.json.")] = Path(
        "results/search"
    ),
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """Rank correlation between the rungs of fidelity, and with the report split, by objective. A killed one goes on."""
    from haqsearch.cli.bench.search import WORK, about, say, single_thread
    from haqsearch.cli.bench.search_page import write_page
    from haqsearch.cli.bench.stages import make_stages, waiting
    from haqsearch.files import write_json_atomic

    single_thread()
    (stage,) = make_stages([recipe], set_ or (), data_root, out / WORK, say)
    with waiting(out / WORK / "sensitivity.lock"):
        _ = stage.assembly.problem.sensitivity
    drawn = draw(stage, policies, seed)
    say(f"{recipe.stem}: {len(drawn)} policies drawn")
    measured = Measured(stage, drawn, accurate, trained, say)
    with waiting(out / WORK / "sensitivity.lock"):
        _ = measured.tables
    content = {
        "schema_version": SCHEMA_VERSION,
        **about(stage),
        "seed": seed,
        "drawn": {kind: sum(d.kind == kind for d in drawn) for kind in (RANDOM, GOOD)},
        "rungs": measured.rungs,
        "objectives": objectives(measured),
        "policies": measured.table,
    }
    path = out / f"fidelity-{recipe.stem}.json"
    write_json_atomic(path, content)
    write_page(out)
    print(path)


@dataclass(frozen=True)
class Drawn:
    """A policy inside the budget; ``kind``: drawn at random, or changed from one that was good."""

    kind: str
    policy: Policy


def draw(stage: Stage, count: int, seed: int) -> list[Drawn]:
    """Half of ``count`` uniformly random, brought inside the budget as agents' proposals are; half good: the sensitivity table's
    optimum, and what was changed from the best so far.

    All differ. Good ones are what a search compares; random ones alone would flatter every score.
    """
    import numpy as np

    problem, rng = stage.assembly.problem, np.random.default_rng(seed)
    found: dict[str, Drawn] = {}
    scores: list[tuple[float, Policy]] = []
    began = False  # with good ones
    for attempt in range(20 * count):
        if len(found) == count:
            break
        if len(found) < count // 2:
            kind, policy = RANDOM, {v.name: int(rng.integers(len(v.candidates))) for v in problem.free}
        elif not began:
            kind, policy, began = GOOD, _optimum(problem), True
        else:
            leaders = sorted(scores, key=lambda pair: -pair[0])[:LEADERS]
            kind, policy = GOOD, _changed(problem, leaders[attempt % len(leaders)][1], rng)
        drawn = _inside(problem, problem.policy_of(policy))
        if drawn.digest in found:
            continue
        evaluation = stage.evaluate(drawn)
        if evaluation.ok:
            found[drawn.digest] = Drawn(kind, drawn)
            scores.append((problem.objective.score(evaluation), drawn))
    return list(found.values())


def _optimum(problem: Problem) -> dict[str, int]:
    """The best policy by the sensitivity table, where budgets are sums; what a good search begins with."""
    import numpy as np

    from haqsearch.agents.assignment import Assignment
    from haqsearch.errors import BudgetError

    losses = [np.array(row) for row in problem.sensitivity.losses(problem.space)]
    try:
        return problem.params_of(problem.space.policy(Assignment(problem).solve(losses)))
    except BudgetError:
        return problem.params_of(problem.known_feasible)


def _changed(problem: Problem, policy: Policy, rng: Any) -> dict[str, int]:
    params = problem.params_of(policy)
    for position in rng.choice(len(problem.free), size=int(rng.integers(1, CHANGES + 1)), replace=False):
        variable = problem.free[position]
        params[variable.name] = int(rng.integers(len(variable.candidates)))
    return params


def _inside(problem: Problem, policy: Policy) -> Policy:
    from haqsearch.agents.repair import repair, take_free_bits

    return take_free_bits(problem, repair(problem, policy, problem.known_feasible))


@dataclass(frozen=True)
class Measured:
    """Scores of ``drawn`` at every rung: ``sensitivity``, what each decision alone adds, and before it the same by measures that
    are calculated; ``ptq:100`` on the first 100 search samples, .., ``ptq`` on all; ``accurate``, rounded in network order;
    ``qat``, fine-tuned."""

    stage: Stage
    drawn: Sequence[Drawn]
    accurate: int
    trained: int
    say: Callable[[str], None]

    @cached_property
    def chain(self) -> tuple[str, ...]:
        """Rungs, each the next one's cheaper judge."""
        samples = len(self.stage.assembly.splits.search[0])
        parts = [f"ptq:{part}" for part in PARTS if part < samples]
        dear = [name for name, count in (("accurate", self.accurate), ("qat", self.trained)) if count]
        return (*self.tables, *parts, "ptq", *dear)

    def next(self, rung: str) -> str:
        """The rung that ``rung`` is to predict; of the additive ones the first that is evaluated. Empty: it is the last."""
        left = [other for other in self.chain[self.chain.index(rung) + 1 :] if other not in self.tables]
        return left[0] if left else ""

    @cached_property
    def tables(self) -> dict[str, Sensitivity]:
        """The additive rungs: the sensitivity table that agents go by, and those of the measures that it is not by."""
        from haqsearch.evaluate.measures import MEASURES

        own, of = self.stage.assembly.problem.sensitivity, self.stage.assembly.sensitivities
        return {**{name: of.table(name) for name in MEASURES if name != own.measure}, SENSITIVITY: own}

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """A row per policy: its scores and processor seconds by rung, and ``report``: those of the same program there."""
        problem = self.stage.assembly.problem
        rows: list[dict[str, Any]] = []
        for number, drawn in enumerate(self.drawn, start=1):
            found = {rung: self._predicted(table, drawn.policy) for rung, table in self.tables.items()}
            for rung in self.chain:
                if rung.startswith("ptq"):
                    part = (0, int(rung.partition(":")[2])) if ":" in rung else (0, None)
                    found[rung] = _figures(self.stage.scores.score(drawn.policy, "search", part))
            report = {"ptq": _figures(self.stage.scores.score(drawn.policy, "report"))}
            rows.append(
                {"kind": drawn.kind, "policy_digest": drawn.policy.digest, "scores": found, "report": report,
                 "costs": {limit.metric: problem.costing.costs(drawn.policy)[limit.metric] for limit in problem.limits}}
            )  # fmt: skip
            if number % 10 == 0:
                self.say(f"{number} of {len(self.drawn)} policies scored")
        objective = problem.objective
        order = sorted(range(len(rows)), key=lambda i: objective.sign * rows[i]["scores"]["ptq"][objective.name])
        for rung, count in (("accurate", self.accurate), ("qat", self.trained)):
            for index in _spread(order, count):
                searched, reported = self._finished(self.drawn[index].policy, rung)
                rows[index]["scores"][rung], rows[index]["report"][rung] = _figures(searched), _figures(reported)
            order = [i for i in order if rung in rows[i]["scores"]]
        return rows

    def _predicted(self, table: Sensitivity, policy: Policy) -> dict[str, float]:
        """What a table adds up to, as the objective that it was measured by; a calculated one ranks by any: here by two."""
        small = table.predict(self.stage.assembly.problem.space, policy)
        names = [table.measure] if table.measure in OBJECTIVES else ["kl", "logit_mse"]
        return {**{name: -OBJECTIVES[name].sign * small for name in names}, "seconds": 0.0}  # some additions

    def _finished(self, policy: Policy, rung: str) -> tuple[Scored, Scored]:
        """Scores of the finished policy on the search and on the report split; the first has the seconds of finishing."""
        from haqsearch.evaluate.metrics import Scores

        made: list[Candidate] = []

        def candidate() -> Candidate:
            if not made:
                finish = self._finisher.rounded if rung == "accurate" else self._finisher.finetuned
                made.append(finish(policy, rung))
            return made[0]

        def searched() -> Scores:
            found = candidate().evaluation
            return Scores(samples=found.samples, **{name: value or 0.0 for name, value in found.scores.items()})

        what = f"{policy.digest} {rung}" + (f" {self.stage.assembly.recipe.qat}" if rung == "qat" else "")
        scores, evaluator = self.stage.scores, self.stage.assembly.evaluator
        first = scores.remembered(what, "search", searched)
        return first, scores.remembered(what, "report", lambda: evaluator.score(candidate().program, "report"))

    @cached_property
    def _finisher(self) -> Any:
        from haqsearch.cli.finish import Finisher
        from haqsearch.config import PtqSettings

        steps = tuple(step for step in self.stage.assembly.recipe.ptq.pipeline if step != "in_order")
        recipe = self.stage.assembly.recipe.model_copy(update={"ptq": PtqSettings(steps=(*steps, "in_order"))})
        return Finisher(self.stage.assembly.with_recipe(recipe), self.stage.folder, self.say, lambda: None)

    @cached_property
    def rungs(self) -> list[dict[str, Any]]:
        """By rung and objective: agreement with the next rung, and with the report accuracy of the same programs."""
        import numpy as np

        found = []
        for rung in self.chain:
            following = self.next(rung)
            finish = rung if rung in {"accurate", "qat"} else "ptq"
            rows = [row for row in self.table if rung in row["scores"]]
            pairs = [row for row in rows if following in row["scores"]]
            accuracies = [row["report"][finish]["accuracy"] for row in rows]
            good = [i for i, row in enumerate(rows) if row["kind"] == GOOD]
            for objective in [name for name in OBJECTIVES if name in rows[0]["scores"][rung]]:
                values = _column(rows, rung, objective)
                found.append(
                    {
                        "rung": rung,
                        "objective": objective,
                        "seconds": round(float(np.median([row["scores"][rung]["seconds"] for row in rows])), 4),
                        "next": following,
                        "with_next": rank_agreement(
                            _column(pairs, rung, objective), _column(pairs, following, objective)
                        ),
                        "with_report": rank_agreement(values, accuracies),
                        "good_with_report": rank_agreement([values[i] for i in good], [accuracies[i] for i in good]),
                    }
                )
        return found


def objectives(measured: Measured) -> dict[str, Any]:
    """Which objective, on the whole search split, ranks most like the report accuracy, and which cannot be told from it.

    Told apart: the 95 % interval of the difference of the two rank correlations, over policies drawn again, excludes 0.
    """
    rows = measured.table
    report = [row["report"]["ptq"]["accuracy"] for row in rows]
    columns = {name: _column(rows, "ptq", name) for name in OBJECTIVES}
    rho = {name: float(spearman(column, report)) for name, column in columns.items()}
    best = max(rho, key=lambda name: rho[name])
    *drawn, accuracy = resampled([*columns.values(), report], 0)
    again = dict(zip(columns, (spearman(column, accuracy) for column in drawn), strict=True))
    alike = [name for name in rho if name != best and interval(again[best] - again[name])[0] <= 0]
    return {"best": best, "alike": alike, "spearman": {name: round(value, 4) for name, value in rho.items()}}


def _column(rows: Sequence[Mapping[str, Any]], rung: str, objective: str) -> list[float]:
    """Scores by which ``rung`` ranks: large is good."""
    return [OBJECTIVES[objective].sign * row["scores"][rung][objective] for row in rows]


def _figures(scored: Scored) -> dict[str, float]:
    figures = {name: round(getattr(scored.scores, name), 8) for name in OBJECTIVES}
    return {**figures, "seconds": round(scored.seconds, 4)}


def _spread(order: Sequence[int], count: int) -> list[int]:
    """``count`` of ``order``, evenly from its first to its last."""
    if count >= len(order):
        return list(order)
    return [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
