"""haqsearch sensitivity, and searches by what it says: by every measure, to be read on a terminal."""

from __future__ import annotations

import json
from itertools import product

import pytest

from haqsearch.cli.sensitivity import WIDTH, lines
from haqsearch.config import Recipe, load_recipe
from haqsearch.evaluate.measures import MEASURES
from haqsearch.spec import LayerSpec, ModelSpec, SearchSpace, Sensitivity

from .conftest import trials

RATIO = """
from haqsearch.evaluate.measures.base import Measure

class Bits(Measure):
    name = "bits"

    def figures(self, number, inputs, labels):
        return {variable.name: [1.0] for variable in self.space.variables}

    def errors(self, variable, means):
        return [means[0] / format.bits for format in variable.candidates]

def nothing():
    return None
"""


@pytest.mark.parametrize("name", MEASURES)
def test_a_calculated_table_is_kept_and_read_again(project, call, name):
    first = call("sensitivity", "my.toml", "--measure", name, "--out", "run", cwd=project)
    assert (first.code, first.err) == (0, "")
    assert max(map(len, first.out.splitlines())) <= WIDTH and f"rise of {name}" in first.out
    assert "calculated from" in first.out
    again = call("sensitivity", "my.toml", "--set", f"sensitivity={name}", "--out", "run", cwd=project)
    assert f"found in run/sensitivity/{name}-" in again.out
    assert again.out.splitlines()[:-1] == first.out.splitlines()[:-1]
    found = json.loads(call("sensitivity", "my.toml", "--measure", name, "--json", "--out", "run", cwd=project).out)
    assert found["measure"] == name and set(found["rise"]) > {"stem.weight", "stem.activation"}


@pytest.mark.parametrize("agent", ["ilp", "funnel", "greedy"])
def test_searches_start_from_the_measure_of_the_recipe(project, call, agent):
    changes = ["--set", f"agent={agent}", "--set", "sensitivity=hessian", "--set", "max_evaluations=6"]
    result = call("run", "my.toml", "--out", "run", *changes, cwd=project)
    assert result.code == 0, result.err
    assert "calculated by hessian" in result.out
    (file,) = (project / "run" / "sensitivity").iterdir()
    assert file.name.startswith("hessian-"), "nothing else was measured"
    assert len(trials(project / "run")) == 6
    if agent != "ilp":
        return
    # The first proposal behind the uniform ones is the least sum of the table's inside the budget.
    from haqsearch.cli.assemble import Assembly

    a = Assembly(load_recipe(project / "run" / "recipe.toml"), project, (), project / "run")
    losses = a.sensitivity.losses(a.space)
    sums = {
        policy.digest: sum(loss[i] for loss, i in zip(losses, key, strict=True))
        for key in product(*(range(len(v.candidates)) for v in a.space.variables))
        if a.problem.feasible(policy := a.space.policy(key))
    }
    proposed = [row["policy_digest"] for row in trials(project / "run")][len(a.problem.openings)]
    assert sums[proposed] == pytest.approx(min(sums.values()))


def test_a_table_of_the_first_search_samples(project, call):
    """It is measured on as many as the recipe says, kept apart from that of all, and what the search begins with."""
    few = ["--set", "split.sensitivity=16"]
    found = {}
    for count, changes in (("16", few), ("64", [])):
        done = call("sensitivity", "my.toml", "--measure", "kl", "--json", "--out", count, *changes, cwd=project)
        assert done.code == 0, done.err
        found[count] = json.loads(done.out)
        assert found[count]["samples"] == int(count)
    assert found["16"]["rise"] != found["64"]["rise"]
    assert call("run", "my.toml", "--out", "16", *few, cwd=project).code == 0
    assert len([*(project / "16" / "sensitivity").glob("*.json")]) == 1, "that table, and no other"


def test_a_measure_of_ones_own(project, call):
    (project / "mine.py").write_text(RATIO)
    result = call("sensitivity", "my.toml", "--measure", "mine:Bits", "--json", cwd=project)
    assert result.code == 0, result.err
    assert json.loads(result.out)["rise"]["stem.weight"] == [1 / 2 - 1 / 8, 1 / 4 - 1 / 8, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sensitivity", "my.toml", "--measure", "hesian"], ["--measure", "output_mse, hessian", "'hessian'?"]),
        (["sensitivity", "my.toml", "--measure", "hessian", "--pairs", "2"], ["leave out --pairs"]),
        (["sensitivity", "my.toml", "--measure", "mine:nothing"], ["'mine:nothing'", "no subclass", "base.Measure"]),
        (["sensitivity", "my.toml", "--measure", "mine:absent"], ["'mine:absent'", "cannot be imported"]),
        (["run", "my.toml", "--out", "run", "--set", "sensitivity=objectiv"], ["did you mean 'objective'?"]),
    ],
    ids=" ".join,
)
def test_mistakes_end_with_one_line_that_mends(project, call, arguments, words):
    (project / "mine.py").write_text(RATIO)
    result = call(*arguments, cwd=project)
    assert result.code == 2 and result.err.count("\n") == 1
    for word in words:
        assert word in result.err
    assert not (project / "run" / "recipe.toml").exists()


def test_recipes_of_before_have_the_digest_they_had():
    before = {"model": "resnet20", "data": "cifar10", "hardware": "bismo-edge", "budget": "latency_s <= 0.4 * int8"}
    assert Recipe(**before).digest == Recipe(**before, sensitivity="objective").digest == "ceb63755e7f4be99"
    assert Recipe(**before, sensitivity="hessian").digest != "ceb63755e7f4be99"


@pytest.mark.parametrize(
    "prefix", ["layer3.0.", "a_backbone.with.a.rather.long.name.that.goes.on.and.on.stage3.block2."]
)
@pytest.mark.parametrize("formats", [(2, 3, 4, 5, 6, 7, 8), (2, "int4:tensor", "kmeans3", "ternary", 8)], ids=str)
def test_tables_fit_a_terminal(prefix, formats):
    from haqsearch.spec import Format

    model = ModelSpec(
        "wide",
        tuple(
            LayerSpec(f"{prefix}conv{i}", "conv2d", (8, 4, 4), (8, 8, 3, 3), (8, 4, 4), macs=1, kernel=(3, 3))
            for i in range(3)
        ),
    )
    weights = [Format.parse(f) if isinstance(f, str) else f for f in formats]
    space = SearchSpace.build(model, weights, (2, 3, 4, 5, 6, 7, 8))
    rise = {v.name: (*(-(10.0**-i) / 3 for i in range(len(v.candidates) - 1)), 0.0) for v in space.variables}
    pair = (space.variables[0].name, space.variables[3].name)
    table = Sensitivity("output_mse", 1.2345e-7, rise, {}, {pair: ((-1.234e-7,),)})
    found = list(lines(table, space))
    assert max(map(len, found)) <= WIDTH
    text = "\n".join(found)
    for i, variable in enumerate(space.variables):
        assert text.count(f"conv{i // 2} {variable.role[0]}") >= 1
        for value in rise[variable.name][:-1]:
            assert f"{value:.2g}" in text
