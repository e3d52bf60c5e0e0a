"""haqsearch bench bits: searched policies against allocations from elsewhere, at the same average weight bits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from haqsearch.cli.options import DataRoot, Overrides, RecipePath

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly
    from haqsearch.cli.bench.stages import Stage
    from haqsearch.evaluate.metrics import Scores
    from haqsearch.spec import ModelSpec, Policy, SearchSpace

SCHEMA_VERSION = 1
AVERAGES = "4,3,2.5,2.25,2"


def command(
    recipe: RecipePath,
    averages: Annotated[
        str, typer.Option("--bits", metavar="B,..", help="Average weight bits; empty: none.")
    ] = AVERAGES,
    bops: Annotated[
        Optional[float],  # noqa: UP045 - typer reads the annotation itself
        typer.Option("--bops", metavar="SHARE", help="Also at this share of int8's bit operations, activations free."),
    ] = None,
    agent: Annotated[str, typer.Option("--agent", metavar="A", help="As in bench search; else the recipe's.")] = "",
    evaluations: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--evaluations", min=1, help="Of each search; else the recipe's."),
    ] = None,
    elsewhere: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--policies", metavar="DIR", help="Folders of policy files: each is scored where it fits."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of bits-NAME.json.")] = Path(
        "results/search"
    ),
    set_: Overrides = None,
    data_root: DataRoot = None,
) -> None:
    """A search at every average of weight bits, beside the same bits everywhere, more bits early, and policies from files.

    Everything is scored on the report split twice: rounded as the search scores it, and as the recipe's preset finishes it.
    """
    from haqsearch.cli.bench.search import WORK, about, say, single_thread
    from haqsearch.cli.bench.search_page import write_page
    from haqsearch.cli.bench.stages import make_stages
    from haqsearch.files import write_json_atomic

    single_thread()
    (stage,) = make_stages([recipe], set_ or (), data_root, out / WORK, say)
    path = out / f"bits-{recipe.stem}.json"
    rows: list[dict[str, Any]] = []
    for contest in _contests(stage, _numbers(averages), bops):
        for row in contest.rows(agent or stage.assembly.recipe.agent, evaluations, elsewhere or ()):
            rows.append(row)
            say(f"{contest.title}, {row['policy']}: {row['accuracy']:.2%}, finished {row['finished_accuracy']:.2%}")
        write_json_atomic(path, {"schema_version": SCHEMA_VERSION, **about(stage), "budget": [], "rows": rows})
    write_page(out)
    print(path)


def _numbers(text: str) -> list[float]:
    from haqsearch.errors import RecipeError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise RecipeError(f"--bits {text!r}: write numbers, as in {AVERAGES}") from None


def _contests(stage: Stage, averages: Sequence[float], bops: float | None) -> Iterator[Contest]:
    a = stage.assembly
    for bits in averages:
        yield Contest(stage, f"{bits:g} bits", f"size_bytes <= {size_at(a, bits)} B", bits, a.recipe.activation_bits)
    if bops is not None:
        yield Contest(stage, f"BOPs {bops:g}", f"bops <= {bops!r} * int8", None, tuple(range(2, 9)))


def size_at(a: Assembly, bits: float) -> int:
    """Bytes of a network whose weights have ``bits`` bits on average: those of 8 bits, less what the weights save."""
    from haqsearch.spec import Choice, Policy

    eight = a.meter.costs(Policy.uniform(a.prepared.spec, Choice.parse("w8a8")))["size_bytes"]
    weights = sum(layer.weight_count for layer in a.prepared.spec.quantizable)
    return floor(eight - (8 - bits) / 8 * weights)


@dataclass(frozen=True)
class Contest:
    """One budget, and who competes inside it. ``average``: weight bits, where that is what is limited."""

    stage: Stage
    title: str
    budget: str
    average: float | None
    activation_bits: tuple[int, ...]

    def rows(self, agent: str, evaluations: int | None, elsewhere: Sequence[Path]) -> Iterator[dict[str, Any]]:
        """Of every competitor its scores and costs; the search's first."""
        update = {"budget": (self.budget,), "activation_bits": self.activation_bits}
        stage = self.stage.with_recipe(self.stage.assembly.recipe.model_copy(update=update))
        found, seconds = self._searched(stage, agent, evaluations or stage.assembly.recipe.max_evaluations)
        yield {**self._scored(stage, agent, found), "search_s": round(seconds, 1)}
        for name, policy, own in self._others(stage.assembly, elsewhere):
            yield {**self._scored(stage, name, policy), **({} if own is None else {"own_accuracy": own})}

    def _searched(self, stage: Stage, agent: str, evaluations: int) -> tuple[Policy, float]:
        """The best policy that ``agent`` finds, and the seconds: of the processor, its sensitivity table included."""
        from haqsearch.cli.bench.cells import Cell, Entrant
        from haqsearch.errors import SearchError
        from haqsearch.search.records import best_of

        start = time.process_time()
        slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.title)
        cell = Cell(_in(stage, slug), Entrant.parse(agent), stage.assembly.recipe.seed, evaluations)
        records = cell.search()
        best = best_of(records)
        if best is None:
            raise SearchError(f"{agent} found no policy with {self.budget}")
        known = sum(record.evaluation.seconds for record in records)
        return best.policy, max(time.process_time() - start, known)

    def _others(self, a: Assembly, elsewhere: Sequence[Path]) -> Iterator[tuple[str, Policy, float | None]]:
        """Name, policy, and the report accuracy in the tool it is from: of the widest by each rule, and those from files."""
        from haqsearch.cli.assemble import load_policy

        for name, family in (("the same bits everywhere", _uniform), ("more bits in early layers", _early)):
            inside = (p for p in family(a.space) if all(limit.met(a.meter.costs(p)) for limit in a.limits))
            if (widest := next(inside, None)) is not None:
                yield name, widest, None
        for folder in elsewhere:
            for file in sorted(folder.glob("*.json")):
                content = json.loads(file.read_text(encoding="utf-8"))
                if self.average is not None and content.get("average_bits") == self.average:
                    tool = f"{content['tool']}'s bits" if "tool" in content else file.stem
                    yield tool, load_policy(str(file), a), content.get("tool_accuracy")

    def _scored(self, stage: Stage, name: str, policy: Policy) -> dict[str, Any]:
        a = stage.assembly
        costs = a.meter.costs(policy)

        def finished() -> Scores:
            in_order = a.prepared.in_order(policy, a.splits.calibrate[0])
            return a.evaluator.score(in_order.lower(policy), "report")

        return {
            "contest": self.title,
            "budget": self.budget,
            "policy": name,
            "digest": policy.digest,
            "layers": {layer: str(choice) for layer, choice in policy.items()},
            "average_bits": round(average_bits(a.prepared.spec, policy), 4),
            "inside": all(limit.met(costs) for limit in a.limits),
            "over": {limit.metric: costs[limit.metric] - limit.value for limit in a.limits},
            "accuracy": stage.scores.score(policy, "report").scores.accuracy,
            "finished_accuracy": stage.scores.remembered(
                f"{policy.digest} in order", "report", finished
            ).scores.accuracy,
        }


def _in(stage: Stage, name: str) -> Stage:
    from dataclasses import replace

    return replace(stage, folder=stage.folder / name)


def average_bits(model: ModelSpec, policy: Mapping[str, Any]) -> float:
    """Of all weights of layers that can be quantized; biases and scales are not counted."""
    layers = model.quantizable
    total = sum(layer.weight_count for layer in layers)
    return float(sum(layer.weight_count * policy[layer.name].weight.bits for layer in layers)) / total


def _uniform(space: SearchSpace) -> Iterator[Policy]:
    """The same widths everywhere, from wide to narrow."""
    yield from sorted(space.uniform(), key=lambda p: -sum(c.weight.bits * c.activation.bits for c in p.values()))


def _early(space: SearchSpace) -> Iterator[Policy]:
    """The usual hand-made rule: one bit more in the first layers, as many of them as fit."""
    free = [i for i, v in enumerate(space.variables) if len(v.candidates) > 1]
    top = max((len(space.variables[i].candidates) for i in free), default=1) - 1
    for low in range(top - 1, -1, -1):
        for early in range(len(free), -1, -1):
            key = [0] * len(space.variables)
            for order, i in enumerate(free):
                key[i] = min(low + (order < early), len(space.variables[i].candidates) - 1)
            yield space.policy(key)
