"""Scores on disk: found again, never wrong, whatever a killed process left."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.evaluate import Evaluator, cache
from haqsearch.evaluate.cache import ScoreCache, code_digest
from haqsearch.spec import Choice, Policy


@pytest.fixture(scope="module")
def evaluator(digits):
    prepared, splits = digits
    return Evaluator(prepared, splits, costing=None, limits=())


def uniform(evaluator: Evaluator, text: str) -> Policy:
    return Policy.uniform(evaluator.prepared.spec, Choice.parse(text))


@pytest.fixture
def counted(evaluator, monkeypatch):
    """The evaluator, and a list of what it really scored."""
    scored = []
    real = evaluator.score
    monkeypatch.setattr(evaluator, "score", lambda *given: (scored.append(given[1:]), real(*given))[1])
    return evaluator, scored


def test_what_is_remembered_is_what_was_scored(counted, tmp_path):
    evaluator, scored = counted
    policy = uniform(evaluator, "w4a4")
    first, second = (ScoreCache(evaluator, tmp_path / "scores.jsonl") for _ in range(2))
    for split, part in (("search", (0, None)), ("search", (0, 50)), ("report", (0, None))):
        real = Evaluator.score(evaluator, evaluator.prepared.lower(policy), split, part)
        before = len(scored)
        assert first.score(policy, split, part).scores == real
        assert second.score(policy, split, part).scores == real, "another process reads other numbers"
        assert len(scored) == before + 1, "scored again"
    assert len(set((tmp_path / "scores.jsonl").read_text().splitlines())) == 3


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=12))
def test_a_torn_end_costs_only_what_was_torn(evaluator, tmp_path_factory, cut, junk):
    file = tmp_path_factory.mktemp("torn") / "scores.jsonl"
    policies = [uniform(evaluator, text) for text in ("w4a4", "w8a8")]
    whole = ScoreCache(evaluator, file)
    for policy in policies:
        whole.score(policy)
    content = file.read_bytes()
    file.write_bytes(content[: cut % (len(content) + 1)] + junk.replace(b"\n", b"!"))
    torn = ScoreCache(evaluator, file)
    assert [torn.score(policy).scores for policy in policies] == [whole.score(policy).scores for policy in policies]
    again = ScoreCache(evaluator, file)
    for policy in policies:
        again.score(policy)
    keys = [line for line in file.read_bytes().splitlines() if line.startswith(b"{")]
    assert again.known.keys() == whole.known.keys()
    assert sum(_is_json(line) for line in keys) >= 2


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_another_network_data_split_or_code_is_another_score(evaluator, tmp_path, monkeypatch):
    def key() -> str:
        return ScoreCache(evaluator, tmp_path / "none")._context("search")

    mine = key()
    assert mine == key() != ScoreCache(evaluator, tmp_path / "none")._context("report")
    inputs, labels = evaluator.splits.search
    with monkeypatch.context() as changed:
        changed.setattr(evaluator, "splits", replace(evaluator.splits, search=(inputs, labels.roll(1))))
        assert key() != mine
    with monkeypatch.context() as changed:
        graph = evaluator.prepared.graph
        name = next(iter(graph.parameters))
        other = replace(graph, parameters={**graph.parameters, name: graph.parameters[name] + 1})
        changed.setattr(evaluator, "prepared", replace(evaluator.prepared, graph=other))
        assert key() != mine
    with monkeypatch.context() as changed:
        changed.setattr(cache, "code_digest", lambda: "other")
        assert key() != mine


def test_the_code_digest_hears_of_code_and_not_of_comments(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    file = tmp_path / "room" / "a.py"
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    monkeypatch.setattr(cache, "NUMERICS", ("room",))

    def digest(source: str) -> str:
        file.write_text(source)
        return code_digest.__wrapped__()

    plain = digest("def f(x):\n    return x + 1\n")
    assert digest('"""Says."""\n\n\ndef f(x):\n    """Adds one."""\n    return x + 1  # at once\n') == plain
    assert digest("def f(x):\n    return x + 2\n") != plain
    (tmp_path / "room" / "b.py").write_text("")
    assert digest("def f(x):\n    return x + 1\n") != plain
