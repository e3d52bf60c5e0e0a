"""One Ray for the whole file: starting it is what takes the time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from haqsearch.agents import build_agent
from haqsearch.errors import SearchError
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.ray_pool import RayPool, _start_ray
from haqsearch.search.records import read_records
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

from .test_ladder import Workers
from .workers import LADDER, in_parts

PROBLEM = toy_problem()
CONFIG = {"layers": 6, "seed": 3}  # of the evaluators in workers.py


@pytest.fixture(scope="module", autouse=True)
def _ray():
    import ray

    sys.path.insert(0, str(Path(__file__).parent))  # the actors are to find the user's module where the driver does
    _start_ray(3)  # two workers of the fixture, and one of a test's own
    yield
    ray.shutdown()
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def two():
    """Two workers that evaluate as ``in_parts(CONFIG)`` does."""
    pool = RayPool("workers:in_parts", CONFIG, workers=2)
    yield pool
    pool.close()


def searched(evaluate_or_pool, count):
    """Records of a random search, which learns nothing: two at a time change nothing."""
    study = new_study()
    pool = SerialPool(evaluate_or_pool) if callable(evaluate_or_pool) else evaluate_or_pool
    summary = run_search(PROBLEM, build_agent("random", PROBLEM, 1), pool, study, count)
    assert summary.complete == count
    return read_records(study)


def test_workers_give_what_this_process_gives(two):
    assert searched(two, 12) == searched(in_parts(CONFIG), 12)


def test_a_ladder_on_workers_is_the_ladder_of_any_pool_with_as_many_places(two):
    found = []
    for pool in (two, Workers(2, in_parts(CONFIG))):
        study = new_study()
        agent = build_agent("tpe", PROBLEM, 1, 16)
        summary = run_search(PROBLEM, agent, pool, study, 16, ladder=LADDER)
        assert summary.pruned > 0
        found.append([(r.policy, r.score, r.evaluation.fidelity) for r in read_records(study)])
    assert found[0] == found[1]


def test_death_and_failure_of_workers(tmp_path):
    """A worker that dies is restarted and its policy given again; dying twice, or raising, fails that policy alone."""
    records = searched(AdditiveLoss(PROBLEM.space.model, CONFIG["seed"]), 6)
    shaky, deadly, wrong = (records[i].policy for i in (1, 2, 4))
    config = {
        **CONFIG,
        "folder": str(tmp_path),
        "shaky": [shaky.digest],
        "deadly": [deadly.digest],
        "wrong": [wrong.digest],
    }
    pool = RayPool("workers:mortal", config, workers=1)
    answers = {record.policy.digest: pool.result(pool.submit(record.policy)) for record in records}
    assert "died twice" in answers[deadly.digest].error
    assert answers[wrong.digest].error == "ValueError: a layer is missing"
    for record in records:
        if record.policy not in (deadly, wrong):
            assert answers[record.policy.digest].loss == record.evaluation.loss
    pool.submit(shaky)
    with pytest.raises(SearchError, match="all 1 Ray workers are busy"):
        pool.submit(shaky)
    pool.close()


def test_a_factory_that_fails_says_why():
    with pytest.raises(SearchError, match=r"workers:broken: .*no weights at weights\.safetensors"):
        RayPool("workers:broken", {}, workers=1)
    with pytest.raises(SearchError, match="module:function"):
        RayPool("workers", {}, workers=1)
