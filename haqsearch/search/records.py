"""A study read back: one record per trial, as a table for people and a front for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from haqsearch.errors import HaqError, SearchError
from haqsearch.files import replacing, write_json_atomic
from haqsearch.spec import METRICS, OBJECTIVES, Choice, Evaluation, Objective, Policy, front

SCHEMA_VERSION = 1
# Of ``trials.parquet``; every other column is a metric.
_COLUMNS = ("number source policy_digest score accuracy loss kl logit_mse feasible violation samples fidelity seconds "
            "policy proposal error").split()  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One finished trial. ``score`` is None and ``evaluation.error`` set where the evaluation failed.

    A pruned trial has no score either, for it was never scored on the whole search split; its ``evaluation`` is of the
    samples that it was scored on, and its fidelity says how many (``ptq:250``).

    ``proposal`` is what the agent wished for, ``policy`` what the budget made of it and what was evaluated.
    ``source`` is the agent's name, or ``uniform`` for the baselines that every search begins with. ``thinking_s`` are
    processor seconds that the agent took to propose it.
    """

    number: int
    source: str
    policy: Policy
    proposal: Policy
    evaluation: Evaluation
    score: float | None
    thinking_s: float = field(default=0.0, compare=False)

    @property
    def pruned(self) -> bool:
        """Given up on a rung of the ladder."""
        return self.score is None and self.evaluation.ok

    @property
    def feasible(self) -> bool:
        """Scored, and inside every limit."""
        return self.score is not None and self.evaluation.violation == 0.0


def policy_text(policy: Policy) -> dict[str, str]:
    """``{"conv1": "w4a8"}``: how policies stand in trials and tables."""
    return {layer: str(choice) for layer, choice in policy.items()}


def read_policy(text: Mapping[str, str]) -> Policy:
    """Inverse of ``policy_text``. Raises PolicyError."""
    return Policy({layer: Choice.parse(choice) for layer, choice in text.items()})


def record_of(trial: FrozenTrial) -> Record:
    """The record of a trial that ``run_search`` finished. Raises KeyError for another one."""
    attributes = trial.user_attrs
    return Record(
        number=trial.number,
        source=attributes["source"],
        policy=read_policy(attributes["policy"]),
        proposal=read_policy(attributes["proposal"]),
        evaluation=Evaluation.from_json(attributes["evaluation"]),
        score=attributes.get("score", trial.values[0]) if trial.state == TrialState.COMPLETE else None,
        thinking_s=attributes.get("thinking_s", 0.0),
    )


def read_records(study: Study) -> list[Record]:
    """Every finished trial that was evaluated, by number; failed and pruned ones included, unfinished ones not."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [record_of(trial) for trial in trials if "evaluation" in trial.user_attrs]


def best_of(records: Sequence[Record]) -> Record | None:
    """The feasible record with the highest score; of equals the first. None if there is none."""
    return max((r for r in records if r.feasible), key=lambda r: (r.score, -r.number), default=None)


def pareto(records: Sequence[Record], metrics: Sequence[str]) -> list[Record]:
    """Feasible records that no other beats in score and all of ``metrics`` at once, best score first."""
    candidates = sorted((r for r in records if r.feasible), key=lambda r: (-_score(r), r.number))
    points = [(-_score(r), *(r.evaluation.metrics[m] for m in metrics)) for r in candidates]
    return [candidates[i] for i in front(points)]


def write_best(path: Path, record: Record, **provenance: Any) -> None:
    """Write ``best.json``: the policy of ``record`` as a policy file, with its costs, its scores and where they come from.

    Base units; ``evaluation`` is the trial's number. The file is the old one or the new one, whole.
    """
    e = record.evaluation
    scores = {"score": record.score, **e.scores}
    content = record.policy.to_json(
        **provenance, fidelity=e.fidelity, costs=dict(e.metrics), evaluation=record.number, **scores
    )
    write_json_atomic(path, content)


def write_trials(path: Path, records: Sequence[Record]) -> None:
    """Write ``trials.parquet``: a row per record, policies as JSON text, a column per metric (base units)."""
    import pandas as pd

    found = {name for record in records for name in record.evaluation.metrics}
    metrics = [name for name in METRICS if name in found] + sorted(found - METRICS.keys())
    columns: dict[str, tuple[str, list[Any]]] = {
        "number": ("int64", [r.number for r in records]),
        "source": ("string", [r.source for r in records]),
        "policy_digest": ("string", [r.policy.digest for r in records]),
        "score": ("float64", [r.score for r in records]),
        **{name: ("float64", [r.evaluation.scores[name] for r in records]) for name in OBJECTIVES},
        "feasible": ("bool", [r.feasible for r in records]),
        "violation": ("float64", [r.evaluation.violation for r in records]),
        "samples": ("int64", [r.evaluation.samples for r in records]),
        "fidelity": ("string", [r.evaluation.fidelity for r in records]),
        "seconds": ("float64", [r.evaluation.seconds for r in records]),
        **{name: ("float64", [r.evaluation.metrics.get(name) for r in records]) for name in metrics},
        "policy": ("string", [json.dumps(policy_text(r.policy)) for r in records]),
        "proposal": ("string", [json.dumps(policy_text(r.proposal)) for r in records]),
        "error": ("string", [r.evaluation.error for r in records]),
    }
    # Types are stated, not inferred: a search of failures only, or of none, has the same columns as any other.
    table = pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, (dtype, values) in columns.items()})
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_trials(path: Path) -> list[Record]:
    """The records of a ``trials.parquet``; numbers that are missing there are None. SearchError if it cannot be read."""
    import pandas as pd

    if not Path(path).is_file():
        raise SearchError(f"{path}: missing; haqsearch run writes it when the search has ended, so run it again")
    try:
        rows = pd.read_parquet(path).to_dict("records")
        return [_record_of_row({key: None if value is pd.NA else value for key, value in row.items()}) for row in rows]
    except HaqError:
        raise
    except Exception as error:  # pyarrow and pandas raise a dozen unrelated kinds
        raise SearchError(f"{path}: not a table of trials ({error}); haqsearch run writes it anew") from error


def _record_of_row(row: Mapping[Any, Any]) -> Record:
    def number(name: str) -> float | None:
        value = row.get(name)
        return float(value) if value is not None and isfinite(value) else None

    evaluation = Evaluation(
        accuracy=number("accuracy"),
        loss=number("loss"),
        kl=number("kl"),
        logit_mse=number("logit_mse"),
        samples=int(number("samples") or 0),
        seconds=number("seconds") or 0.0,
        fidelity=str(row.get("fidelity") or "ptq"),
        metrics={name: value for name in row if name not in _COLUMNS and (value := number(name)) is not None},
        violation=number("violation") or 0.0,
        error=str(row["error"] or ""),
    )
    policy, proposal = (read_policy(json.loads(row[name])) for name in ("policy", "proposal"))
    return Record(int(row["number"]), str(row["source"]), policy, proposal, evaluation, number("score"))


def write_pareto(
    path: Path,
    records: Sequence[Record],
    objective: Objective,
    metrics: Sequence[str],
    volume: Mapping[str, Any] | None = None,
) -> None:
    """Write ``pareto.json``: the points of ``pareto``, numbered from 1, with their policies; numbers in base units.

    Every point was ``evaluated`` at its ``fidelity``; nothing in the file is a prediction. ``volume`` is a trade-off's
    hypervolume with its reference point (``FrontVolume.to_json``).
    """
    points = [
        {
            "point": point,
            "trial": record.number,
            "source": record.source,
            "evaluated": True,
            "fidelity": record.evaluation.fidelity,
            "samples": record.evaluation.samples,
            "policy_digest": record.policy.digest,
            "score": record.score,
            **record.evaluation.scores,
            "metrics": dict(record.evaluation.metrics),
            "policy": policy_text(record.policy),
        }
        for point, record in enumerate(pareto(records, metrics), start=1)
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "objective": objective.name,
        "metrics": list(metrics),
        **(volume or {}),
        "points": points,
    }
    write_json_atomic(path, content)


def _score(record: Record) -> float:
    assert record.score is not None, "a feasible record has a score"
    return record.score
