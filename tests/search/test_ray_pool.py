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


@pytest.fixture(scope="module", autouse=True)
def _ray():
    import ray

    sys.path.insert(0, str(Path(__file__).parent))  # the actors are to find the user's module where the driver does
    _start_ray(2)
    yield
    ray.shutdown()
    sys.path.remove(str(Path(__file__).parent))


def policies(count):
    study = new_study()
    pool = SerialPool(AdditiveLoss(PROBLEM.space.model, 3))
    run_search(PROBLEM, build_agent("random", PROBLEM, 1), pool, study, count)
    return read_records(study)


def test_workers_give_what_this_process_gives():
    pool = RayPool("workers:additive", {"layers": 6, "seed": 3}, workers=2)
    study = new_study()
    summary = run_search(PROBLEM, build_agent("random", PROBLEM, 1), pool, study, 12)
    pool.close()
    assert summary.complete == 12
    assert read_records(study) == policies(12)  # a random agent learns nothing, so two at a time change nothing


def test_a_ladder_on_workers_is_the_ladder_of_any_pool_with_as_many_places():
    config, found = {"layers": 6, "seed": 3}, []
    for pool in (RayPool("workers:in_parts", config, workers=2), Workers(2, in_parts(config))):
        study = new_study()
        agent = build_agent("tpe", PROBLEM, 1, 16)
        summary = run_search(PROBLEM, agent, pool, study, 16, ladder=LADDER)
        pool.close()
        assert summary.pruned > 0
        found.append([(r.policy, r.score, r.evaluation.fidelity) for r in read_records(study)])
    assert found[0] == found[1]


def test_death_and_failure_of_workers(tmp_path):
    """A worker that dies is restarted and its policy given again; dying twice, or raising, fails that policy alone."""
    records = policies(6)
    shaky, deadly, wrong = (records[i].policy for i in (1, 2, 4))
    config = {
        "layers": 6,
        "seed": 3,
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
