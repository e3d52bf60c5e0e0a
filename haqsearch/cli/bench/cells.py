"""A cell of the comparison of agents: one agent on one recipe with one seed, searched through the real loop; and its rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haqsearch.errors import DataError, RecipeError, SearchError

if TYPE_CHECKING:
    from haqsearch.agents import Agent
    from haqsearch.cli.bench.stages import Stage
    from haqsearch.search.records import Record

IMPROVED, REPORTED = "improved", "reported"


@dataclass(frozen=True)
class Entrant:
    """An agent and its options, written ``ddpg`` or ``ddpg(warmup=40, noise=0.3)``."""

    text: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Entrant:
        """Raises RecipeError if ``text`` is not written so; whether the agent takes the options is for the agent to say."""
        match = re.fullmatch(r"\s*(\w[\w.]*(?::\w[\w.]*)?)\s*(?:\((.*)\))?\s*", text)
        try:
            if not match:
                raise ValueError("no agent's name")
            options = tomllib.loads("options = {" + (match[2] or "") + "}")["options"]
        except ValueError as error:
            raise RecipeError(f"--agent {text!r}: write ddpg, or ddpg(warmup=40, noise=0.3) ({error})") from None
        shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())
        return cls(f"{match[1]}({shown})" if options else match[1], match[1], options)

    @property
    def slug(self) -> str:
        """As a folder's name, another one for every text."""
        plain = re.sub(r"[^\w.]+", "-", self.text).strip("-")
        return f"{plain}-{hashlib.sha256(self.text.encode()).hexdigest()[:6]}" if self.options else plain


@dataclass(frozen=True)
class Row:
    """One line of a recipe's CSV: a new best (``improved``), or the best so far scored on the report split (``reported``).

    evaluations   how many the search was given; ``evaluation``: after how many this holds
    score         the recipe's objective on the search split, large is good
    thinking_s, scoring_s   processor seconds until then, of the agent, and of evaluations as if none had been known before
    policy        formats by layer as JSON; of reported rows only, as the report_ columns
    """

    agent: str
    evaluations: int
    seed: int
    event: str
    evaluation: int
    score: float
    search_accuracy: float
    policy_digest: str
    thinking_s: float
    scoring_s: float
    report_accuracy: float | None = None
    report_kl: float | None = None
    policy: str = ""
    commit: str = ""

    @property
    def cell(self) -> tuple[str, int, int]:
        return self.agent, self.evaluations, self.seed


def write_rows(rows: Sequence[Row]) -> str:
    """As CSV, sorted by cell and evaluation."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda row: (*row.cell, row.evaluation, row.event)):
        writer.writerow({key: "" if value is None else value for key, value in asdict(row).items()})
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """Rows of a recipe's CSV; none if there is no such file. Raises DataError if it is something else."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return [_row(line) for line in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not written by haqsearch bench search ({error}); move it away") from None


def _row(line: Mapping[str, str]) -> Row:
    kinds: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    kinds["float | None"] = lambda text: float(text) if text else None
    return Row(**{f.name: kinds[str(f.type)](line[f.name]) for f in fields(Row)})


@dataclass(frozen=True)
class Cell:
    """One search of the comparison, in its own folder."""

    stage: Stage
    entrant: Entrant
    seed: int
    evaluations: int

    @property
    def folder(self) -> Path:
        return self.stage.folder / f"{self.entrant.slug}-{self.evaluations}-{self.seed}"

    def __str__(self) -> str:
        return f"{self.stage.name}, {self.entrant.text}, seed {self.seed}"

    @property
    def agent(self) -> Agent:
        """A new agent. Raises RecipeError if there is none of that name, or none with these options."""
        from haqsearch.agents import build_agent

        problem, options = self.stage.assembly.problem, dict(self.entrant.options)
        return build_agent(self.entrant.name, problem, self.seed, self.evaluations, **options)

    def run(self, at: Sequence[int], commit: str) -> list[Row]:
        """Search to the end; the rows, with the best after ``at`` evaluations. Raises as ``search``."""
        records = [record for record in self.search() if record.score is not None]
        counts = sorted({count for count in at if count < self.evaluations} | {self.evaluations})
        rows: list[Row] = []
        best: Record | None = None
        thinking = scoring = 0.0
        for evaluation, record in enumerate(records, start=1):
            thinking += record.thinking_s
            scoring += record.evaluation.seconds
            if record.feasible and (best is None or (record.score or 0.0) > (best.score or 0.0)):
                best = record
                rows.append(self._row(best, IMPROVED, evaluation, thinking, scoring, commit))
            # A search that ended early had its last best ever after.
            done = [
                count for count in counts if evaluation == count or (evaluation == len(records) and count > evaluation)
            ]
            rows += [self._row(best, REPORTED, count, thinking, scoring, commit) for count in done if best]
        return rows

    def search(self) -> list[Record]:
        """Search to the end, from where a killed process stopped; what was evaluated.

        Raises Busy if another process is at it, and what ``run_search`` raises.
        """
        from haqsearch.search.loop import run_search
        from haqsearch.search.pool import SerialPool
        from haqsearch.search.records import read_records
        from haqsearch.search.storage import exclusive, open_study

        assembly = self.stage.assembly
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(self.folder))
            except SearchError as error:
                raise Busy(str(error)) from None
            recipe = assembly.recipe.model_copy(update={"agent": self.entrant.text})
            digest = f"{recipe.digest}-{assembly.weights_digest}-{assembly.device.digest}"
            study = open_study(self.folder, "search", digest)
            run_search(assembly.problem, self.agent, SerialPool(self.stage.evaluate), study, self.evaluations)
            return read_records(study)

    def refine(self, records: Sequence[Record], evaluations: int) -> list[Record]:
        """A second search from the best of ``records``, with weights rounded in network order; see ``search.refine``."""
        from haqsearch.agents import build_agent
        from haqsearch.search.loop import run_search
        from haqsearch.search.pool import SerialPool
        from haqsearch.search.records import read_records
        from haqsearch.search.refine import refined
        from haqsearch.search.storage import exclusive, open_study

        if not evaluations:
            return []
        assembly = self.stage.assembly
        problem, name = refined(assembly.problem, records)
        agent = build_agent(self.entrant.name, problem, self.seed, evaluations, **self.entrant.options)
        with exclusive(self.folder):
            study = open_study(self.folder, name)
            run_search(problem, agent, SerialPool(assembly.evaluator.evaluate_in_order), study, evaluations)
            return read_records(study)

    def _row(self, best: Record, event: str, evaluation: int, thinking: float, scoring: float, commit: str) -> Row:
        from haqsearch.search.records import policy_text

        found = best.evaluation
        report: dict[str, Any] = {}
        if event == REPORTED:
            scores = self.stage.scores.score(best.policy, "report").scores
            policy = json.dumps(policy_text(best.policy), separators=(",", ":"))
            report = {"report_accuracy": scores.accuracy, "report_kl": round(scores.kl, 8), "policy": policy}
        return Row(
            self.entrant.text,
            self.evaluations,
            self.seed,
            event,
            evaluation,
            float(best.score or 0.0),
            float(found.accuracy or 0.0),
            best.policy.digest,
            round(thinking, 3),
            round(scoring, 3),
            commit=commit,
            **report,
        )


class Busy(SearchError):
    """Another process is at this cell."""
