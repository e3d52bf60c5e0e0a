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
    from haqsearch.evaluate.cache import Scored
    from haqsearch.evaluate.metrics import Scores
    from haqsearch.spec import ModelSpec, Policy, SearchSpace

SCHEMA_VERSION = 2
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
    finalists: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--finalists", min=1, help="Best of each search that are finished, else the recipe's number."),
    ] = None,
    orders: Annotated[
        int,
        typer.Option("--orders", min=1, help="Orders of the calibration samples in which every policy is finished."),
    ] = 1,
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

    With --orders it is finished from the calibration samples in several orders: that shows what is chance. A killed one goes on.
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
        for row in contest.rows(agent or stage.assembly.recipe.agent, evaluations, finalists, elsewhere or ()):
            rows.append({**row, **contest.again(row, orders)})
            say(f"{contest.title}, {row['policy']}: {row['accuracy']:.2%}, finished {row['finished_accuracy']:.2%}")
        write_json_atomic(path, {**about(stage), "schema_version": SCHEMA_VERSION, "budget": [], "rows": rows})
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

    def rows(
        self, agent: str, evaluations: int | None, finalists: int | None, elsewhere: Sequence[Path]
    ) -> Iterator[dict[str, Any]]:
        """Of every competitor its scores and costs; the search's first."""
        update = {"budget": (self.budget,), "activation_bits": self.activation_bits}
        stage = self.stage.with_recipe(self.stage.assembly.recipe.model_copy(update=update))
        recipe = stage.assembly.recipe
        (first, *best), seconds = self._searched(
            stage, agent, evaluations or recipe.max_evaluations, finalists or recipe.ptq.finalists
        )
        chosen, finishing = self._chosen(stage, best)
        yield {
            **self._scored(stage, agent, first, chosen),
            "search_s": round(seconds, 1), "finish_s": round(finishing, 1), "finalists": len(best),
        }  # fmt: skip
        for name, policy, own in self._others(stage.assembly, elsewhere):
            yield {**self._scored(stage, name, policy, policy), **({} if own is None else {"own_accuracy": own})}

    def again(self, row: Mapping[str, Any], orders: int) -> dict[str, list[float]]:
        """Report accuracies and divergences of the finished policy of ``row``, from every order of the calibration samples."""
        from haqsearch.spec import Choice, Policy

        policy = Policy({layer: Choice.parse(text) for layer, text in row["finished_layers"].items()})
        found = [self._finished(self.stage, policy, "report", order).scores for order in range(orders)]
        return {"finished_accuracies": [s.accuracy for s in found], "finished_kls": [s.kl for s in found]}

    def _searched(self, stage: Stage, agent: str, evaluations: int, count: int) -> tuple[list[Policy], float]:
        """The best policy that ``agent`` finds, then those to be finished - of the second search, if the recipe has one -, and
        seconds of the processor, those of its sensitivity table included.
        """
        from haqsearch.cli.bench.cells import Cell, Entrant
        from haqsearch.search.refine import leading

        start = time.process_time()
        slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.title)
        cell = Cell(_in(stage, slug), Entrant.parse(agent), stage.assembly.recipe.seed, evaluations)
        found = cell.search()
        second = cell.refine(found, stage.assembly.recipe.ptq.refine)
        known = sum(record.evaluation.seconds + record.thinking_s for record in (*found, *second))
        policies = [record.policy for record in leading(found)[:1]]
        policies += [record.policy for record in leading(second or found)[:count]]
        return policies, max(time.process_time() - start, known)

    @classmethod
    def _chosen(cls, stage: Stage, finalists: Sequence[Policy]) -> tuple[Policy, float]:
        """The finalist that is best on the search split as a run finishes them, and the processor's seconds: all are rounded in
        network order, and the better half of them tried with balanced channels.
        """
        objective = stage.assembly.problem.objective
        first = {policy: cls._finished(stage, policy, "search", balanced=False) for policy in finalists}

        def best_first(scored: Mapping[Policy, Scored]) -> list[Policy]:
            return sorted(scored, key=lambda policy: -objective.sign * getattr(scored[policy].scores, objective.name))

        better = best_first(first)[: (len(first) + 1) // 2]
        second = {policy: cls._finished(stage, policy, "search") for policy in better}
        # What balancing costs is timed with the rounding that it begins from, which is not done twice in a run.
        more = sum(max(scored.seconds - first[policy].seconds, 0.0) for policy, scored in second.items())
        return best_first(second)[0], sum(scored.seconds for scored in first.values()) + more

    @staticmethod
    def _finished(stage: Stage, policy: Policy, split: str, order: int = 0, balanced: bool = True) -> Scored:
        """Scores of ``policy`` rounded in network order, from the calibration samples in an ``order`` of theirs."""
        import torch

        a = stage.assembly

        def make() -> Scores:
            inputs = a.splits.calibrate[0]
            if order:
                inputs = inputs[torch.randperm(len(inputs), generator=torch.Generator().manual_seed(order))]
            rounded = a.prepared.in_order(policy, inputs, balance=balanced)
            return a.evaluator.score(rounded.lower(policy), split)

        how = f"in order{order or ''}" if balanced else "in order, as it is"
        return stage.scores.remembered(f"{policy.digest} {how}", split, make)

    def _others(self, a: Assembly, elsewhere: Sequence[Path]) -> Iterator[tuple[str, Policy, float | None]]:
        """Name, policy, and the report accuracy in the tool it is from: of the widest by each rule, and those from files."""
        from haqsearch.cli.policies import load_policy

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

    def _scored(self, stage: Stage, name: str, policy: Policy, chosen: Policy) -> dict[str, Any]:
        """``policy`` as the search scores it, ``chosen`` as the recipe's preset finishes it."""
        a = stage.assembly
        limits = {p.digest: _over(a, p) for p in (policy, chosen)}
        finished = self._finished(stage, chosen, "report").scores
        return {
            "contest": self.title,
            "budget": self.budget,
            "policy": name,
            "layers": {layer: str(choice) for layer, choice in policy.items()},
            "finished_layers": {layer: str(choice) for layer, choice in chosen.items()},
            "average_bits": round(average_bits(a.prepared.spec, policy), 4),
            "finished_average_bits": round(average_bits(a.prepared.spec, chosen), 4),
            "over": max(limits.values()),
            "accuracy": stage.scores.score(policy, "report").scores.accuracy,
            "finished_accuracy": finished.accuracy,
            "finished_kl": finished.kl,
        }


def _over(a: Assembly, policy: Policy) -> float:
    """By how much the limit is exceeded, in the metric's base unit; negative: what is left of it."""
    costs = a.meter.costs(policy)
    return max(costs[limit.metric] - limit.value for limit in a.limits)


def _in(stage: Stage, name: str) -> Stage:
    from dataclasses import replace

    return replace(stage, folder=stage.folder / name)


def average_bits(model: ModelSpec, policy: Mapping[str, Any]) -> float:
    """Of all weights of layers that can be quantized; biases and scales are not counted."""
    layers = model.quantizable
    total = sum(layer.weight_count for layer in layers)
    return float(sum(layer.weight_count * policy[layer.name].weight.bits for layer in layers)) / total


def _uniform(space: SearchSpace) -> Iterator[Policy]:
    """The same widths everywhere, from wide to narrow; of equal products of widths the most alike, as w4a4 of w2a8 and w8a2."""

    def order(policy: Policy) -> tuple[float, float]:
        pairs = [(choice.weight.bits, choice.activation.bits) for choice in policy.values()]
        return -sum(w * a for w, a in pairs), sum(abs(w - a) for w, a in pairs)

    yield from sorted(space.uniform(), key=order)


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


# -- the page ---------------------------------------------------------------------------------------------------------

_HEAD = """
Every competitor inside the same bytes: packed weights, biases and scales, those of 8 bits less what fewer bits save. The first
figure is the report accuracy with weights rounded once per layer and width, as the search scores policies; the second with
the weights rounded once more, in network order, as the recipe's preset finishes the chosen policy. Of a search the first is of
the policy best on the search split, the second of the best of its finalists, finished, on the search split.
"""

_DIVERGENCE = """
How far the finished network's answers are from the float network's, on the report split: the mean Kullback-Leibler divergence
in nats. Labels aside, it tells policies apart where accuracies lie within each other's error:
"""

_ORDERS = """
What of that is chance: every finished policy rounded anew from the calibration samples in {} orders, which takes other positions
of them into account. Mean accuracy and mean divergence, and in brackets the least and the most. (A policy was chosen by its
score in the first order, on the search split.)
"""


def section(folder: Path) -> list[str]:
    """The table of every ``bits-*.json``, for ``search_page``."""
    lines: list[str] = []
    for path in sorted(folder.glob("bits-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema_version"] == SCHEMA_VERSION:  # an older file's figures are another table's
            lines += [f"\n### {found['recipe']}\n", *_table(found)]
    return ["\n## At the same average bits\n", _HEAD.strip(), *lines] if lines else []


def _table(found: Mapping[str, Any]) -> list[str]:
    rows, where = found["rows"], found["environment"]
    contests = sorted({row["contest"] for row in rows}, key=_widest_first)
    cells = {(row["policy"], row["contest"]): row for row in rows}
    by_itself = {
        (f"{policy}, quantized by itself", contest): f"{row['own_accuracy']:.2%}"
        for (policy, contest), row in cells.items()
        if "own_accuracy" in row
    }
    lines = [
        *_grid(contests, {key: _cell(row) for key, row in cells.items()} | by_itself),
        "",
        _DIVERGENCE.strip(),
        "",
        *_grid(contests, {key: f"{row['finished_kl']:.4f}" for key, row in cells.items()}),
        "",
    ]
    if (orders := max(len(row.get("finished_accuracies", ())) for row in rows)) > 1:
        lines += [
            _ORDERS.strip().format(orders),
            "",
            *_grid(contests, {key: _spread(row["finished_accuracies"], "{:.2%}") for key, row in cells.items()}),
            "",
            *_grid(contests, {key: _spread(row["finished_kls"], "{:.4f}") for key, row in cells.items()}),
            "",
        ]
    searched = [row for row in rows if "search_s" in row]
    seconds = ", ".join(f"{row['search_s']:.0f} + {row['finish_s']:.0f}" for row in searched)
    over = [f"{row['policy']} at {row['contest']} by {row['over']:g}" for row in rows if row["over"] > 0]
    return [
        *lines,
        f"{found['model']} on {found['data']}, no training; float accuracy {found['float_accuracy']:.2%} on "
        f"{found['splits']['report']:,} report samples. Objective: {found['objective']} on {found['splits']['search']:,} "
        f"search samples. Seconds of the processor to search and to finish "
        f"{searched[0]['finalists'] if searched else 0} finalists: {seconds}. "
        f"Over the budget: {', '.join(over) or 'none, by a single byte'}. "
        f"Made by `haqsearch bench bits`, commit {where['commit']}: {where['processor']}, {where['cores']} cores, "
        f"torch {where['torch']}, Python {where['python']}.",
    ]


def _grid(contests: Sequence[str], cells: Mapping[tuple[str, str], str]) -> list[str]:
    """A table of texts by (policy, contest), a policy a line."""
    lines = [f"| | {' | '.join(contests)} |", "|---" * (len(contests) + 1) + "|"]
    for policy in dict.fromkeys(policy for policy, _ in cells):
        lines.append(f"| {policy} | {' | '.join(cells.get((policy, contest), '') for contest in contests)} |")
    return lines


def _widest_first(contest: str) -> tuple[int, float]:
    """Averages of bits from many to few, then shares of bit operations."""
    number, _, unit = contest.partition(" ")
    return (0, -float(number)) if unit == "bits" else (1, -float(unit))


def _cell(row: Mapping[str, Any]) -> str:
    bits = "" if row["over"] <= 0 else " (over the budget)"
    return f"{row['accuracy']:.2%} / **{row['finished_accuracy']:.2%}**{bits}"


def _spread(values: Sequence[float], form: str) -> str:
    mean, *ends = (form.format(value) for value in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({' .. '.join(ends)})"
