"""README.md of a folder of search results: made from the files there alone, each time one is written.

To add a section: a function (folder) -> lines, and its line in ``SECTIONS``.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

from haqsearch.cli.bench import bits, optimum
from haqsearch.cli.bench.cells import IMPROVED, REPORTED, Row, read_rows

_HEAD = """# What the agents find

Written by `haqsearch bench` from the files beside it; `haqsearch bench search --page-only` makes it anew.
"""

_SEARCH = """
Every agent searches the same problem through the same loop, with the same seeds and as many evaluations. The objective is
measured on the search split; the policy that is best there, and nothing else, is then scored on the report split, which no
search sees. Figures are medians over the seeds, with their range in brackets. "Equals" is how many evaluations an agent needs
to reach the objective that the default agent (`{default}`) has after {early}. Seconds are the processor's, of the agent and of
the evaluations, as if none had been known from another search (they are kept: no policy is scored twice).
"""

Lines = list[str]
EARLY = 60  # evaluations, after which the default agent is to be as good as the others at the end


@dataclass
class Series:
    """An agent's searches of one recipe, all given ``evaluations``."""

    agent: str
    evaluations: int
    rows: dict[int, list[Row]] = field(default_factory=dict)  # by seed

    def best_after(self, seed: int, evaluation: int) -> float:
        """The best objective score after so many evaluations; -inf where there is none yet."""
        found = [row for row in self.rows[seed] if row.event == IMPROVED]
        index = bisect_right([row.evaluation for row in found], evaluation)
        return found[index - 1].score if index else -inf

    def scores(self, evaluation: int) -> list[float]:
        return [self.best_after(seed, evaluation) for seed in self.rows]

    def reported(self, evaluation: int) -> list[float]:
        """Report accuracies after so many evaluations, of the seeds that have one."""
        rows = [row for part in self.rows.values() for row in part]
        found = [row.report_accuracy for row in rows if row.event == REPORTED and row.evaluation == evaluation]
        return [accuracy for accuracy in found if accuracy is not None]

    def reaches(self, score: float) -> float:
        """Median number of evaluations after which the objective is at least ``score``; inf if it never is."""
        first = [
            min((row.evaluation for row in part if row.event == IMPROVED and row.score >= score), default=inf)
            for part in self.rows.values()
        ]
        return median(first)

    def seconds(self) -> tuple[float, float]:
        """Median processor seconds (thinking, scoring) of a whole search."""
        last = [part[-1] for part in self.rows.values()]
        return median(row.thinking_s for row in last), median(row.scoring_s for row in last)


def series_of(rows: Sequence[Row]) -> list[Series]:
    """By agent and number of evaluations."""
    found: dict[tuple[str, int], Series] = {}
    for row in sorted(rows, key=lambda row: (row.cell, row.evaluation, row.event == REPORTED)):
        one = found.setdefault((row.agent, row.evaluations), Series(row.agent, row.evaluations))
        one.rows.setdefault(row.seed, []).append(row)
    return list(found.values())


def write_page(folder: Path) -> None:
    """Write ``folder``/README.md, and an SVG beside every CSV. Raises OSError if they cannot be written."""
    from haqsearch.files import write_text_atomic

    parts = [_HEAD]
    for section in SECTIONS:
        parts += section(folder)
    write_text_atomic(folder / "README.md", "\n".join(parts).rstrip() + "\n")


# -- agents -----------------------------------------------------------------------------------------------------------


def searches(folder: Path) -> Lines:
    """A table and curves for every recipe's CSV, and who reaches whom."""
    from haqsearch.config import Recipe
    from haqsearch.files import write_text_atomic

    default = Recipe.model_fields["agent"].default
    lines: Lines = []
    for path in sorted(folder.glob("*.csv")):
        side = path.with_suffix(".json")
        if not side.is_file() or not (rows := read_rows(path)):  # learning.csv has no JSON beside it
            continue
        about = json.loads(side.read_text(encoding="utf-8"))
        series, commits = series_of(rows), ", ".join(sorted({row.commit for row in rows}))
        write_text_atomic(path.with_suffix(".svg"), curves(series, about))
        lines += [
            f"\n### {about['recipe']}\n",
            _about(about),
            f"Commit of the searches: {commits}.",
            "",
            *_table(series, about, default),
        ]
        lines += ["", *_verdict(series, about, default), "", f"![Best so far]({path.stem}.svg)"]
    return ["\n## Agents\n", _SEARCH.strip().format(default=default, early=EARLY), *lines] if lines else []


def _about(about: dict[str, Any]) -> str:
    where, splits = about["environment"], about["splits"]
    return (
        f"{about['model']} on {about['data']}, {about['hardware']}, `{'; '.join(about['budget'])}`, ptq {about['ptq']}; "
        f"{about['variables']} variables, {about['space']:.1e} policies; objective: {about['objective']} on {splits['search']:,} "
        f"search samples; float accuracy {about['float_accuracy']:.2%} on {splits['report']:,} report samples. "
        f"{where['processor']}, {where['cores']} cores, torch {where['torch']}, optuna {where['optuna']}, "
        f"Python {where['python']}; commit {where['commit']}."
    )


def _table(series: Sequence[Series], about: dict[str, Any], default: str) -> Lines:
    sign = about["objective_sign"]
    reference = _of(series, default, EARLY)
    target = median(reference.scores(EARLY)) if reference else None
    ordered = sorted(series, key=lambda s: -median(s.scores(s.evaluations)))
    head = [
        "agent",
        "seeds",
        f"{about['objective']} at {EARLY}",
        f"report at {EARLY}",
        f"{about['objective']} at the end",
    ]
    head += ["report at the end", "evaluations", "equals", "seconds: agent + scoring"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in ordered:
        thinking, scoring = one.seconds()
        reached = one.reaches(target) if target is not None else inf
        cells = [
            f"`{one.agent}`",
            f"{len(one.rows)}",
            _spread([sign * s for s in one.scores(EARLY)], ".4f") if one.evaluations >= EARLY else "",
            _spread(one.reported(EARLY), ".2%"),
            _spread([sign * s for s in one.scores(one.evaluations)], ".4f"),
            _spread(one.reported(one.evaluations), ".2%"),
            f"{one.evaluations}",
            "" if target is None else f"{reached:.0f}" if isfinite(reached) else "never",
            f"{thinking:.1f} + {scoring:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _of(series: Sequence[Series], agent: str, at_least: int) -> Series | None:
    """The searches of ``agent`` that were given the fewest evaluations, but ``at_least`` so many."""
    return min((s for s in series if s.agent == agent and s.evaluations >= at_least), default=None,
               key=lambda s: s.evaluations)  # fmt: skip


def _verdict(series: Sequence[Series], about: dict[str, Any], default: str) -> Lines:
    """Whether the default agent has after EARLY evaluations what every other has at the end, in medians."""
    ours = _of(series, default, EARLY)
    others = [s for s in series if s.agent != default and s.reported(s.evaluations)]
    if ours is None or not others or not ours.reported(EARLY):
        return []
    accuracy, score = median(ours.reported(EARLY)), median(ours.scores(EARLY))
    best = max(others, key=lambda s: median(s.reported(s.evaluations)))
    theirs = median(best.reported(best.evaluations))
    ahead = [s.agent for s in others if median(s.scores(s.evaluations)) > score]
    objective = (
        f"ahead of it in the objective: {', '.join(f'`{a}`' for a in ahead)}"
        if ahead
        else "none ahead of it in the objective"
    )
    if accuracy < theirs and best.agent not in ahead:
        sign, images = about["objective_sign"], about["splits"]["report"]
        found = sign * score, sign * median(best.scores(best.evaluations))
        error = 100 * (theirs * (1 - theirs) / images) ** 0.5
        objective += (
            f": {found[0]:.4f} where `{best.agent}` has {found[1]:.4f}. The {images:,} report samples, which no search sees, "
            f"put the two the other way round (standard error of an accuracy on them: {error:.2f} points)"
        )
    return [
        f"`{default}` after {EARLY}: {accuracy:.2%}. The best of the others at its end: `{best.agent}` after {best.evaluations}, "
        f"{theirs:.2%} ({100 * (accuracy - theirs):+.2f} points); {objective}."
    ]


def _spread(values: Sequence[float], style: str) -> str:
    """Median and, of several, range."""
    if not values or not all(map(isfinite, values)):
        return ""
    middle = f"{median(values):{style}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{style}} .. {max(values):{style}})"


def curves(series: Sequence[Series], about: dict[str, Any]) -> str:
    """The best so far of every agent, median and range over the seeds, as SVG."""
    from haqsearch.report.curves import Curve, draw

    sign = about["objective_sign"]
    found = []
    for one in sorted(series, key=lambda s: -median(s.scores(s.evaluations))):
        x = list(range(1, one.evaluations + 1))
        bests = [[sign * s for s in one.scores(count)] for count in x]
        middle, low, high = ([f(b) for b in bests] for f in (median, min, max))
        found.append(Curve(one.agent, x, middle, low, high))
    return draw(found, f"{about['recipe']}: best so far", "evaluations", f"{about['objective']}, search split")


# -- fidelities -------------------------------------------------------------------------------------------------------

_FIDELITY = """
Policies inside the budget, half of them drawn at random, half good: the sensitivity table's optimum, and changed from the best so
far, as a search compares them. Each is scored on every rung. Rank correlations: Spearman's, with its 95 % bootstrap interval over
the policies, and Kendall's; with the next rung, by the same objective, and with the accuracy on the report split of the same
program. `sensitivity` adds up what each decision alone does to the objective; so do `output_mse` and `hessian`, but what they
add up is calculated, not evaluated. All three are compared with the first rung that is evaluated. A rung below {least} with the
next is not to be trusted with choosing. Seconds of the processor, a policy; of parts without making its program.
"""
LEAST_CORRELATION = 0.8


def fidelities(folder: Path) -> Lines:
    """A table for every ``fidelity-*.json``, the objective to choose, and the rungs that predict nothing."""
    lines: Lines = []
    for path in sorted(folder.glob("fidelity-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        drawn = ", ".join(f"{count} {kind}" for kind, count in found["drawn"].items())
        lines += [f"\n### {found['recipe']}\n", _about(found), f"Policies: {drawn}.", "", *_rungs(found["rungs"]), ""]
        lines += [_choice(found["objectives"]), _weak(found["rungs"])]
    return ["\n## Fidelities\n", _FIDELITY.strip().format(least=LEAST_CORRELATION), *lines] if lines else []


def _rungs(rungs: Sequence[dict[str, Any]]) -> Lines:
    head = [
        "rung",
        "objective",
        "seconds",
        "policies",
        "with the next rung",
        "Kendall",
        "with the report split",
        "Kendall",
    ]
    head += ["of good ones alone"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for rung in rungs:
        following, report, good = rung["with_next"], rung["with_report"], rung["good_with_report"]
        cells = [rung["rung"], rung["objective"], f"{rung['seconds']:.2g}", str((report or {}).get("count", ""))]
        cells += [*_agreement(following), *_agreement(report), _agreement(good)[0]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _agreement(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    low, high = found["interval"]
    return f"{found['spearman']:.3f} ({low:.2f} .. {high:.2f})", f"{found['kendall']:.2f}"


def _choice(objectives: dict[str, Any]) -> str:
    ranked = ", ".join(f"{name} {rho:.3f}" for name, rho in sorted(objectives["spearman"].items(), key=lambda p: -p[1]))
    alike = f"; not told apart from it: {', '.join(objectives['alike'])}" if objectives["alike"] else ""
    return f"Most like the report accuracy on the whole search split: **{objectives['best']}** ({ranked}){alike}."


def _weak(rungs: Sequence[dict[str, Any]]) -> str:
    weak = [
        f"{rung['rung']} by {rung['objective']} ({rung['with_next']['spearman']:.2f})"
        for rung in rungs
        if rung["with_next"] and rung["with_next"]["spearman"] < LEAST_CORRELATION
    ]
    return (
        f"Below {LEAST_CORRELATION} with the next rung: {', '.join(weak)}." if weak else "Every rung predicts the next."
    )


# -- devices ----------------------------------------------------------------------------------------------------------


def devices(folder: Path) -> Lines:
    """The table of every ``devices-*.json``."""
    lines: Lines = []
    for path in sorted(folder.glob("devices-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"\n### {found['recipe']}\n", *device_table(found)]
    return ["\n## A policy for each device\n", *lines[1:]] if lines else []


def device_table(found: dict[str, Any]) -> Lines:
    """A row per policy, found for a device; a column per device that it runs on; and whether each is the best on its own."""
    policies, metric, where = found["policies"], found["metric"], found["environment"]
    names = list(policies)
    batches = {name: cost["batch"] for p in policies.values() for name, cost in p["costs"].items() if cost}
    head = ["found for", *(f"on {name}" for name in names), f"{found['objective']}, search", "accuracy, report"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, policy in policies.items():
        costs = [_cost(metric, policy["costs"][other], other == name) for other in names]
        score = found["objective_sign"] * policy["score"]
        lines.append(f"| {name} | {' | '.join(costs)} | {score:.4f} | {policy['report_accuracy']:.2%} |")
    beaten = [text for name in names if (text := _beaten(found, name))]
    verdict = "; ".join(beaten) if beaten else "every policy is the best of them on the device that it was found for"
    several = {name: batch for name, batch in batches.items() if batch != 1}
    batch = f" (batch {', '.join(f'{b} on {n}' for n, b in several.items())}; else 1)" if several else ""
    target = found["objective_sign"] * found["target"]["score"]
    return [
        *lines,
        "",
        f"{found['model']} on {found['data']}, ptq {found['ptq']}, no training: {metric}{batch}, and its share of 8 bits "
        f"everywhere, in bold on the device it was found for. For each, `{found['agent']}` looked for the least at which "
        f"{found['objective']} on {found['splits']['search']:,} search samples is that of `{found['target']['policy']}` "
        f"({target:.4f}) or better, with {found['evaluations']} evaluations for each budget tried. "
        f"{verdict[0].upper()}{verdict[1:]}. "
        f"Made by `haqsearch bench devices`, commit {where['commit']}: {where['processor']}, {where['cores']} cores, "
        f"torch {where['torch']}, Python {where['python']}.",
    ]


def _cost(metric: str, cost: dict[str, float] | None, own: bool) -> str:
    from hwmodels.meter import quantity

    text = f"{quantity(metric, cost['value'])} ({cost['share']:.3f})" if cost else "cannot run it"
    return f"**{text}**" if own else text


def _beaten(found: dict[str, Any], device: str) -> str:
    """Who is better on ``device`` than the policy found for it; empty if none is."""
    costs = {name: policy["costs"][device] for name, policy in found["policies"].items()}
    own = costs[device]["value"]
    best = min((name for name in costs if costs[name]), key=lambda name: costs[name]["value"])
    value = costs[best]["value"]
    return f"on {device} the policy found for {best} takes {1 - value / own:.1%} less" if value < own else ""


SECTIONS: tuple[Callable[[Path], Lines], ...] = (searches, optimum.section, bits.section, fidelities, devices)
