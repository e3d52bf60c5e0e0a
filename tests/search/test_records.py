from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.agents import build_agent
from haqsearch.errors import SearchError
from haqsearch.files import replacing, write_json_atomic
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import (
    Record,
    best_of,
    pareto,
    policy_text,
    read_policy,
    read_records,
    read_trials,
    write_pareto,
    write_trials,
)
from haqsearch.spec import OBJECTIVES, Choice, Evaluation, Policy, dominates
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

PROBLEM = toy_problem()


@pytest.fixture(scope="module")
def records():
    good = AdditiveLoss(PROBLEM.space.model)

    def brittle(policy: Policy) -> Evaluation:
        return Evaluation.failed("no memory") if int(policy.digest, 16) % 4 == 0 else good(policy)

    study = new_study()
    run_search(PROBLEM, build_agent("random", PROBLEM, 1), SerialPool(brittle), study, 25)
    return read_records(study)


def made(number: int, score: float | None, violation: float, **metrics: float) -> Record:
    policy = Policy({"a": Choice.parse(f"w{2 + number % 15}a4")})
    evaluation = (
        Evaluation(0.5, -score, 0.0, 1, 0.1, metrics=metrics, violation=violation) if score else Evaluation.failed("x")
    )
    return Record(number, "random", policy, policy, evaluation, score)


@given(
    st.lists(
        st.tuples(st.integers(-5, -1), st.integers(0, 5), st.integers(0, 5), st.sampled_from([0.0, 0.1])), max_size=12
    )
)
def test_the_front_holds_exactly_what_nothing_feasible_dominates(numbers):
    records = [made(i, float(s), v, size_bytes=float(b), bops=float(o)) for i, (s, b, o, v) in enumerate(numbers)]
    found = pareto(records, ["size_bytes", "bops"])

    def point(record):
        return (-record.score, record.evaluation.metrics["size_bytes"], record.evaluation.metrics["bops"])

    feasible = [r for r in records if r.feasible]
    points = [point(r) for r in found]
    assert all(r.feasible for r in found)
    assert len(set(points)) == len(points)
    for record in feasible:
        assert (point(record) in points) == (not any(dominates(point(o), point(record)) for o in feasible))
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def test_the_best_is_feasible_and_the_first_of_equals():
    records = [made(0, -0.1, 0.2), made(1, -0.5, 0.0), made(2, None, 0.0), made(3, -0.5, 0.0), made(4, -0.9, 0.0)]
    assert best_of(records).number == 1
    assert best_of([records[0], records[2]]) is None


def test_policies_survive_their_text():
    policy = Policy(
        {name: Choice.parse(text) for name, text in {"a": "w4a8", "b": "float32", "c": "int3/int5"}.items()}
    )
    assert read_policy(policy_text(policy)) == policy
    assert policy_text(policy)["a"] == "w4a8"


def test_trials_parquet(records, tmp_path):
    write_trials(tmp_path / "trials.parquet", records)
    table = pd.read_parquet(tmp_path / "trials.parquet")
    first = "number source policy_digest score accuracy loss kl logit_mse feasible violation samples fidelity seconds".split()
    assert list(table.columns) == [*first, "size_bytes", "bops", "policy", "proposal", "error"]
    assert len(table) == len(records)
    for record, row in zip(records, table.to_dict("records"), strict=True):
        assert (row["number"], row["source"], row["feasible"]) == (record.number, record.source, record.feasible)
        assert read_policy(json.loads(row["policy"])).digest == row["policy_digest"] == record.policy.digest
        assert read_policy(json.loads(row["proposal"])) == record.proposal
        if record.score is None:
            assert pd.isna(row["score"])
            assert row["error"] == "no memory"
        else:
            assert (row["score"], row["bops"]) == (record.score, record.evaluation.metrics["bops"])
    assert table["score"].isna().any()


def test_trials_survive_their_table(records, tmp_path):
    write_trials(tmp_path / "trials.parquet", records)
    read = read_trials(tmp_path / "trials.parquet")
    assert [(r.number, r.source, r.policy, r.proposal, r.score, r.feasible) for r in read] == [
        (r.number, r.source, r.policy, r.proposal, r.score, r.feasible) for r in records
    ]
    assert [replace(r.evaluation, seconds=0.0) for r in read] == [replace(r.evaluation, seconds=0.0) for r in records]
    write_trials(tmp_path / "none.parquet", [])
    assert read_trials(tmp_path / "none.parquet") == []


def test_a_table_that_is_none_is_refused(tmp_path):
    with pytest.raises(SearchError, match=r"trials.parquet: missing; haqsearch run writes it"):
        read_trials(tmp_path / "trials.parquet")
    (tmp_path / "trials.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(SearchError, match="not a table of trials"):
        read_trials(tmp_path / "trials.parquet")
    pd.DataFrame({"number": [1]}).to_parquet(tmp_path / "trials.parquet")
    with pytest.raises(SearchError, match="not a table of trials"):
        read_trials(tmp_path / "trials.parquet")


def test_an_empty_table_has_the_same_types(records, tmp_path):
    for name, rows in (("full", records), ("none", [])):
        write_trials(tmp_path / f"{name}.parquet", rows)
    full, none = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("full", "none"))
    assert list(none.columns) == [c for c in full.columns if c not in ("size_bytes", "bops")]
    assert all(none.dtypes[column] == full.dtypes[column] for column in none.columns)


def test_pareto_json(records, tmp_path):
    write_pareto(tmp_path / "pareto.json", records, OBJECTIVES["loss"], ["size_bytes", "bops"])
    written = json.loads((tmp_path / "pareto.json").read_text())
    assert (written["schema_version"], written["objective"], written["metrics"]) == (1, "loss", ["size_bytes", "bops"])
    front = pareto(records, ["size_bytes", "bops"])
    assert [p["policy_digest"] for p in written["points"]] == [r.policy.digest for r in front]
    told = {"policy_digest", "score", "accuracy", "loss", "kl", "logit_mse", "metrics", "policy"}
    assert set(written["points"][0]) == told | {"point", "trial", "source", "evaluated", "fidelity", "samples"}
    assert [p["point"] for p in written["points"]] == list(range(1, len(front) + 1))
    assert [p["trial"] for p in written["points"]] == [r.number for r in front]
    assert all(p["evaluated"] and p["fidelity"] == "ptq" and p["samples"] == 100 for p in written["points"])
    assert written["points"][0]["policy"]["block.0"] == "w8a8"
    assert written["points"][0]["score"] == best_of(records).score


def test_files_are_old_or_new_but_never_half(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("{")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
