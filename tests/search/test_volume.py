from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.search.records import Record, pareto
from haqsearch.search.volume import FrontVolume
from haqsearch.spec import OBJECTIVES, Choice, Evaluation, Policy
from haqsearch.testing.toy import toy_problem

POLICY = Policy({"a": Choice.parse("w4a4")})
LOSS = OBJECTIVES["loss"]


def made(number: int, level: float, costs: tuple[float, ...], source: str = "random", violation: float = 0.0) -> Record:
    """A record whose loss is ``level`` above perfect on the even scale: 1e-6 nats, times e for every level."""
    loss = 1e-6 * exp(level)
    metrics = dict(zip(("size_bytes", "bops"), costs, strict=False))
    evaluation = Evaluation(None, loss, None, 1, 0.1, metrics=metrics, violation=violation)
    return Record(number, source, POLICY, POLICY, evaluation, -loss)


def volume(records: list[Record], reference: dict[str, float]) -> FrontVolume:
    found = FrontVolume(LOSS, reference)
    found.add(records)
    return found


trials = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.tuples(st.integers(0, 7), st.integers(0, 7)),
        st.sampled_from(["uniform", "random"]),
        st.sampled_from([0.0, 0.0, 0.5]),
    ),
    max_size=12,
).map(lambda rows: [made(i, *row) for i, row in enumerate(rows)])


@given(trials, st.integers(0, 12))
def test_it_never_falls_with_more_trials(records, cut):
    reference = {"size_bytes": 6.0, "bops": 5.0}
    shares = [volume(records[:n], reference).share for n in range(len(records) + 1)]
    assert all(after >= before - 1e-12 for before, after in pairwise(shares))
    assert all(0.0 <= share <= 1.0 for share in shares)
    in_two = volume(records[:cut], reference)  # as a resumed search adds them
    in_two.add(records[cut:])
    assert in_two.share == pytest.approx(shares[-1])
    front = pareto(records, ["size_bytes", "bops"])
    assert len(in_two) == len(front)
    assert in_two.newest == max((record.number for record in front), default=None)


@given(trials)
def test_it_is_the_share_of_the_cells_that_a_count_finds(records):
    """Unit cells of a grid over the box, each dominated as a whole or not at all."""
    reference = {"size_bytes": 6.0, "bops": 5.0}
    inside = [r for r in records if r.feasible]
    levels = {r.number: round(log(r.evaluation.loss / 1e-6)) for r in inside}
    worst = max((levels[r.number] for r in inside if r.source == "uniform"), default=None)
    share = volume(records, reference).share
    if worst is None:
        assert share == 0.0
        return
    cells = list(product(range(worst), range(6), range(5)))
    points = [(levels[r.number], r.evaluation.metrics["size_bytes"], r.evaluation.metrics["bops"]) for r in inside]
    covered = sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)
    assert share == pytest.approx(covered / len(cells))


def test_the_reference_is_the_limit_or_int8_and_the_worst_uniform_policy():
    problem = toy_problem(share=0.5, tradeoff=("bops",))
    full = problem.costing.costs(Policy.uniform(problem.space.model, Choice.parse("w8a8")))
    assert problem.reference == {"bops": 0.5 * full["bops"]}
    assert replace(problem, limits=(), tradeoff=("size_bytes", "bops")).reference == full
    assert replace(problem, tradeoff=()).reference == {}
    found = volume([made(0, 4.0, (1.0,), "uniform"), made(1, 8.0, (0.5,)), made(2, 1.0, (1.5,))], {"size_bytes": 2.0})
    assert found.to_json() == {
        "hypervolume": pytest.approx((0.5 * 3 + 0.5 * 0) / (4 * 2)),
        "reference": {"loss": pytest.approx(1e-6 * exp(4.0)), "size_bytes": 2.0},
        "front": 3,
    }


def test_accuracy_counts_from_one_down():
    accuracy = FrontVolume(OBJECTIVES["accuracy"], {"size_bytes": 10.0})
    for number, (value, size, source) in enumerate([(0.6, 2.0, "uniform"), (0.9, 5.0, "random")]):
        evaluation = Evaluation(value, None, None, 1, 0.1, metrics={"size_bytes": size})
        accuracy.add([Record(number, source, POLICY, POLICY, evaluation, value)])
    assert accuracy.share == pytest.approx((0.4 - 0.1) * (10 - 5) / (0.4 * 10))
    assert accuracy.to_json()["reference"] == {"accuracy": 0.6, "size_bytes": 10.0}


def test_without_a_baseline_there_is_no_reference():
    assert volume([made(0, 1.0, (1.0, 1.0))], {"size_bytes": 6.0, "bops": 5.0}).to_json()["reference"]["loss"] is None
    perfect = volume([made(0, 0.0, (1.0, 1.0), "uniform")], {"size_bytes": 6.0, "bops": 5.0})
    assert perfect.share == 0.0
