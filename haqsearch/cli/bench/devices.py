"""haqsearch bench devices: the policy found for each device, priced on every one (HAQ, Wang et al., CVPR 2019, table 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import DataRoot, Overrides, RecipePath

if TYPE_CHECKING:
    from haqsearch.cli.bench.cells import Entrant
    from haqsearch.cli.bench.stages import Stage
    from haqsearch.search.records import Record
    from haqsearch.spec import Policy

SCHEMA_VERSION = 1
DEVICES = ("bitfusion", "bismo-edge", "bismo-cloud", "host")
BEGIN, END = "<!-- devices:begin -->", "<!-- devices:end -->"


def command(
    recipe: RecipePath,
    device: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation itself
        typer.Option("--device", metavar="D", help=f"A device; once for each (default: {', '.join(DEVICES)})."),
    ] = None,
    agent: Annotated[str, typer.Option("--agent", metavar="A", help="As in bench search; else the recipe's.")] = "",
    as_good_as: Annotated[
        str, typer.Option("--as-good-as", metavar="P", help="The policy whose objective all are to reach.")
    ] = "uniform:w4a4",
    metric: Annotated[str, typer.Option("--metric", metavar="M", help="What is to be small.")] = "latency_s",
    evaluations: Annotated[int, typer.Option("--evaluations", min=1, help="Of each search.")] = 60,
    searches: Annotated[int, typer.Option("--searches", min=1, help="Budgets tried for each device.")] = 7,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the agent.")] = 0,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of devices-NAME.json.")] = Path(
        "results/search"
    ),
    write: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--write", metavar="FILE", help="Put the table between the devices marks of this Markdown file."),
    ] = None,
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """The least of a metric on each device at one level of the objective; every policy on every device. A killed one goes on."""
    from haqsearch.cli.bench.cells import Entrant
    from haqsearch.cli.bench.search import WORK, about, say, single_thread
    from haqsearch.cli.bench.search_page import device_table, write_page
    from haqsearch.cli.bench.stages import make_stages
    from haqsearch.cli.policies import load_policy
    from haqsearch.cli.results import write_between
    from haqsearch.files import write_json_atomic

    single_thread()
    (stage,) = make_stages([recipe], set_ or (), data_root, out / WORK, say)
    hunt = Hunt(stage, Entrant.parse(agent or stage.assembly.recipe.agent), metric, evaluations, searches, seed)
    enough = load_policy(as_good_as, stage.assembly)
    target = hunt.score_of(enough)
    found = {name: hunt.least(name, enough, target) for name in device or DEVICES}
    for name, hit in found.items():
        say(f"{name}: {hit.share:.3f} of 8 bits, after {len(hit.tried)} searches")
    content = {
        "schema_version": SCHEMA_VERSION,
        **about(stage),
        "budget": [],
        "limits": {},
        "agent": hunt.entrant.text,
        "evaluations": evaluations,
        "seed": seed,
        "metric": metric,
        "target": {"policy": as_good_as, "score": target},
        "policies": {name: hunt.priced(hit, list(found)) for name, hit in found.items()},
    }
    path = out / f"devices-{recipe.stem}.json"
    write_json_atomic(path, content)
    write_page(out)
    if write is not None:
        write_between(write, BEGIN, END, "\n".join(device_table(json.loads(path.read_text(encoding="utf-8")))))
    print(path)


@dataclass(frozen=True)
class Hit:
    """The policy of least cost on a device among those that reach the target; ``share`` of 8 bits everywhere; the budgets
    ``tried``, as such shares, with the best score inside each, None where nothing was found inside."""

    best: Record
    share: float
    tried: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Hunt:
    """Looks for the least ``metric`` at which ``entrant`` reaches a score, by halving: a search at every budget tried."""

    stage: Stage
    entrant: Entrant
    metric: str
    evaluations: int
    searches: int
    seed: int

    def score_of(self, policy: Policy) -> float:
        """The recipe's objective of ``policy`` on the search split; large is good."""
        from haqsearch.errors import SearchError

        evaluation = self.stage.evaluate(policy)
        if not evaluation.ok:
            raise SearchError(f"--as-good-as: {evaluation.error}")
        return self.stage.assembly.problem.objective.score(evaluation)

    def least(self, device: str, enough: Policy, target: float) -> Hit:
        """Between the least there is on ``device`` and what ``enough`` costs, which reaches ``target``, in geometric steps.

        Only policies of this device's own searches count.
        """
        from haqsearch.errors import SearchError

        assembly = self._stage(device, 1.0).assembly
        meter, full = assembly.meter, assembly.meter.int8()[self.metric]
        low, high = (
            cost / full for cost in (meter.least(assembly.space)[self.metric].value, meter.costs(enough)[self.metric])
        )
        reached: list[Record] = []
        tried: list[tuple[float, float | None]] = []
        budget = high
        while True:
            records = self._search(device, budget)
            tried.append((round(budget, 4), max((r.score or 0.0 for r in records), default=None)))
            inside = [r for r in records if (r.score or 0.0) >= target]
            reached += inside
            if not reached:
                raise SearchError(
                    f"{device}: no policy of the search space reaches the target; give a lower one by --as-good-as"
                )
            best = min(reached, key=lambda r: (r.evaluation.metrics[self.metric], -(r.score or 0.0)))
            share = best.evaluation.metrics[self.metric] / full
            low, high = (low, share) if inside else (budget, share)
            if len(tried) == self.searches or high - low < 0.005 * high:
                return Hit(best, share, tuple(tried))
            budget = sqrt(low * high)

    def _stage(self, device: str, share: float) -> Stage:
        share = ceil(share * 1e4) / 1e4
        budget = (f"{self.metric} <= {share:.4f} * int8",)
        recipe = self.stage.assembly.recipe.model_copy(update={"hardware": device, "budget": budget})
        stage = self.stage.with_recipe(recipe)
        folder = self.stage.folder.parent / "devices" / self.stage.name / stage.assembly.device.name / f"{share:.4f}"
        return replace(stage, name=f"{self.stage.name} on {device} at {share:.4f}", folder=folder)

    def _search(self, device: str, share: float) -> list[Record]:
        """Feasible records of the search at a budget; none where no policy that can be found is inside it."""
        from haqsearch.cli.bench.cells import Cell
        from haqsearch.cli.bench.search import say
        from haqsearch.errors import BudgetError

        cell = Cell(self._stage(device, share), self.entrant, self.seed, self.evaluations)
        say(str(cell))
        try:
            return [record for record in cell.search() if record.feasible]
        except BudgetError:
            return []

    def priced(self, hit: Hit, devices: Sequence[str]) -> dict[str, Any]:
        """What the policy of ``hit`` is worth, and its cost on every device."""
        from haqsearch.search.records import policy_text

        policy, evaluation = hit.best.policy, hit.best.evaluation
        scores = self.stage.scores.score(policy, "report").scores
        return {
            "policy_digest": policy.digest,
            "score": hit.best.score,
            "search_accuracy": evaluation.accuracy,
            "report_accuracy": scores.accuracy,
            "report_kl": round(scores.kl, 8),
            "tried": [list(pair) for pair in hit.tried],
            "costs": {name: self._cost(policy, name) for name in devices},
            "policy": policy_text(policy),
        }

    def _cost(self, policy: Policy, device: str) -> dict[str, float] | None:
        """``value`` in base units for one batch, and its ``share`` of 8 bits; None where the device cannot run the policy."""
        from haqsearch.errors import HardwareError

        meter = self._stage(device, 1.0).assembly.meter
        try:
            value = meter.costs(policy)[self.metric]
        except HardwareError:
            return None
        return {"value": value, "share": value / meter.int8()[self.metric], "batch": meter.batch}
