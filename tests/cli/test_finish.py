"""The last ladder: who is rounded, who gets the short fine-tune, who the full one, and that none of it is done twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from haqsearch.cli.assemble import Assembly
from haqsearch.cli.finish import Finisher
from haqsearch.cli.together import sharing_threads
from haqsearch.config import load_recipe
from haqsearch.spec import Choice, Policy

WIDTHS = ("w4a4", "w4a8", "w8a4", "w8a2")


@pytest.fixture
def finisher(project):
    def build(preset: str, candidates: int, steps: int = 8, at_once: int = 1) -> tuple[Finisher, list[str]]:
        said: list[str] = []
        overrides = [f"ptq.preset={preset}", f"qat.candidates={candidates}", f"qat.steps={steps}"]
        a = Assembly(load_recipe(project / "my.toml", overrides), project, (), project / "run")
        return Finisher(a, project / "run", said.append, lambda: None, at_once), said

    return build


def policies(finisher: Finisher, count: int) -> list[Policy]:
    spec, fixed = finisher.assembly.prepared.spec, finisher.assembly.recipe.fixed_choices
    return [Policy.uniform(spec, Choice.parse(text), fixed) for text in WIDTHS[:count]]


@pytest.mark.parametrize(("preset", "entering", "candidates", "short"), [
    ("plain", 1, 1, 0), ("plain", 2, 2, 2), ("plain", 4, 4, 4), ("accurate", 1, 1, 0), ("accurate", 2, 2, 2),
    ("accurate", 4, 1, 0), ("accurate", 4, 2, 2),
])  # fmt: skip
def test_the_best_rounded_go_on_and_one_is_trained_in_full(finisher, preset, entering, candidates, short):
    climber, said = finisher(preset, candidates)
    made = climber.climbed(policies(climber, entering))
    by = {f: [c for c in made if c.evaluation.fidelity == f] for f in ("ptq", "qat:2", "qat")}
    assert [len(by[f]) for f in by] == [entering, short, 1]
    assert sum("fine-tuning" in text for text in said) == short + 1
    rounded = {c.policy.digest: climber.score(c) for c in by["ptq"]}
    promoted = {c.policy.digest: climber.score(c) for c in by["qat:2"]}
    if promoted:
        assert min(rounded[digest] for digest in promoted) >= sorted(rounded.values())[-short]
    (full,) = by["qat"]
    rivals = promoted or rounded
    assert rivals[full.policy.digest] == max(rivals.values())


def test_without_training_all_are_rounded_and_that_is_all(finisher):
    climber, said = finisher("plain", 0)
    made = climber.climbed(policies(climber, 1))
    assert [c.evaluation.fidelity for c in made] == ["ptq"]
    assert said == []


def test_what_was_trained_is_loaded_with_the_seconds_that_it_took(finisher):
    first, _ = finisher("plain", 2)
    chosen = policies(first, 2)
    made = first.climbed(chosen)
    again, said = finisher("plain", 2)
    loaded = again.climbed(chosen)
    assert not any("fine-tuning" in text for text in said)
    for one, other in zip(made, loaded, strict=True):
        assert replace(one.evaluation, seconds=0.0) == replace(other.evaluation, seconds=0.0)
        if one.evaluation.fidelity != "ptq":
            assert one.evaluation.seconds == other.evaluation.seconds
    longer, said = finisher("plain", 2, steps=20)
    longer.climbed(chosen)
    assert sum("fine-tuning" in text for text in said) == 3, "other steps are other fine-tunes"


def test_a_run_records_every_rung_of_its_finish(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    rows = summary["finish"]
    assert [(r["source"], r["fidelity"]) for r in rows] == [
        ("search", "ptq"), ("search", "qat"), ("uniform", "ptq"), ("uniform", "qat"),
    ]  # fmt: skip
    assert all(r["seconds"] > 0 and r["score"] == -r["kl"] for r in rows)
    best = max(rows, key=lambda r: r["score"])
    assert (best["policy_digest"], best["fidelity"]) == (summary["policy_digest"], summary["fidelity"])
    assert summary["ended"]["by"] == "max_evaluations"
    assert summary["ladder"] is None and summary["pruned_evaluations"] == 0


def test_what_was_trained_from_other_weights_is_trained_again(finisher):
    first, _ = finisher("plain", 1)
    (policy,) = policies(first, 1)
    first.climbed([policy])
    again, said = finisher("plain", 1)
    again.climbed([policy])
    assert not said
    other, said = finisher("accurate", 1)  # the same policy in the same folder, rounded by another method
    other.climbed([policy])
    assert sum("fine-tuning" in text for text in said) == 1


def test_rounded_together_policies_become_what_they_become_alone(finisher):
    """And the better half of them is tried with balanced channels, as the uniform baseline is whatever it scores."""
    threads = torch.get_num_threads()
    made = []
    for at_once in (1, 3):
        climber, said = finisher("accurate", 0, at_once=at_once)
        chosen = policies(climber, 4)
        made.append(climber.climbed(chosen))
        assert torch.get_num_threads() == threads
        assert sum("in network order" in text for text in said) == 4 and any("2 of them" in text for text in said)
        last = chosen[min(range(4), key=lambda i: climber.score(made[-1][i]))]
        climber.finished(last, "the uniform baseline")
        assert sum("in network order" in text for text in said) == 4, "it is not rounded twice"
        assert "1 of them with balanced channels, where activations are narrow" in said
    assert [c.policy.digest for c in made[0]] == [p.digest for p in chosen]
    for one, other in zip(*made, strict=True):
        assert one.program.digest == other.program.digest
        assert replace(one.evaluation, seconds=0.0) == replace(other.evaluation, seconds=0.0)
    alone = climber.assembly.prepared.in_order(chosen[0], climber.assembly.splits.calibrate[0]).lower(chosen[0])
    first, _ = finisher("accurate", 0)
    assert first.rounded(chosen[0], "it").program.digest == alone.digest


def test_side_by_side_torch_and_numpy_share_the_threads_and_have_them_back():
    import numpy as np
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    assert float((np.ones((3, 3)) @ np.ones((3, 3))).sum()) == 27.0  # its library is loaded
    before = torch.get_num_threads(), blas()
    torch.set_num_threads(4)
    try:
        with pytest.raises(KeyError), sharing_threads(2):
            assert torch.get_num_threads() == 2 and all(threads <= 2 for threads in blas())
            with sharing_threads(8):
                assert torch.get_num_threads() == 1 and all(threads == 1 for threads in blas())
            raise KeyError
        assert (torch.get_num_threads(), blas()) == (4, before[1])
    finally:
        torch.set_num_threads(before[0])
