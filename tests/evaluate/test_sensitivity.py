"""Sensitivity tables of a real network: what is in them, and what is on disk."""

from __future__ import annotations

import json

import pytest

from haqsearch.errors import SearchError
from haqsearch.evaluate import Evaluator
from haqsearch.evaluate.sensitivity import Sensitivities
from haqsearch.spec import OBJECTIVES, SearchSpace
from haqsearch.testing.toy import ShapeCosts


@pytest.fixture(scope="module")
def evaluator(digits):
    return Evaluator(*digits, ShapeCosts(digits[0].spec), ())


@pytest.fixture(scope="module")
def space(evaluator):
    return SearchSpace.build(evaluator.prepared.spec, (2, 4, 8), (4, 8))


def test_a_rise_is_the_difference_of_two_evaluations(evaluator, space):
    base = evaluator.evaluate(space.policy([len(v.candidates) - 1 for v in space.variables]))
    tables = Sensitivities(evaluator, space)
    for measure in OBJECTIVES:
        sign = -1 if measure == "accuracy" else 1
        table = tables.table(measure)
        assert table.check(space).base == sign * base.scores[measure]
        position, variable = 2, space.variables[2]
        key = [len(v.candidates) - 1 for v in space.variables]
        key[position] = 0
        alone = evaluator.evaluate(space.policy(key))
        assert table.rise[variable.name][0] == pytest.approx(sign * (alone.scores[measure] - base.scores[measure]))
        assert all(rises[-1] == 0 for rises in table.rise.values())
        assert table.predict(space, space.policy(key)) == pytest.approx(sign * alone.scores[measure])


def test_two_bits_hurt_more_than_four(evaluator, space):
    table = Sensitivities(evaluator, space).table("logit_mse")
    assert all(table.rise[v.name][0] > table.rise[v.name][1] for v in space.variables if v.role == "weight")


def test_it_is_measured_once_and_goes_on_where_it_was_killed(evaluator, space, tmp_path):
    steps = []
    tables = Sensitivities(evaluator, space, tmp_path)
    whole = tables.measured(lambda done, of: steps.append((done, of)))
    assert steps[-1][0] == steps[-1][1] == 1 + sum(len(v.candidates) - 1 for v in space.variables)
    again: list = []
    assert Sensitivities(evaluator, space, tmp_path).measured(lambda *step: again.append(step)) == whole
    assert not again
    for name in [v.name for v in space.variables][-2:]:  # as if killed two variables earlier
        del whole[name]
    tables.file.write_text(json.dumps(whole))
    assert Sensitivities(evaluator, space, tmp_path).measured(lambda *step: again.append(step)).keys() > whole.keys()
    assert len(again) == sum(len(v.candidates) - 1 for v in space.variables[-2:])


def test_another_space_or_split_is_another_table(evaluator, space, tmp_path):
    other = SearchSpace.build(evaluator.prepared.spec, (2, 8), (4, 8))
    names = {
        Sensitivities(evaluator, space, tmp_path).file,
        Sensitivities(evaluator, other, tmp_path).file,
        Sensitivities(evaluator, space, tmp_path, samples=50).file,
    }
    assert len(names) == 3


def test_pairs_are_what_the_sum_of_both_lacks(evaluator, space):
    tables = Sensitivities(evaluator, space, pairs=3)
    table = tables.table("logit_mse")
    assert len(table.pairs) == 3
    (first, second), rises = next(iter(table.pairs.items()))
    place = {v.name: i for i, v in enumerate(space.variables)}
    key = [len(v.candidates) - 1 for v in space.variables]
    key[place[first]] = key[place[second]] = 0
    both = evaluator.evaluate(space.policy(key)).logit_mse
    assert rises[0][0] == pytest.approx(both - table.base - table.rise[first][0] - table.rise[second][0])
    assert table.predict(space, space.policy(key)) == pytest.approx(both)


def test_within_layers_a_prediction_is_the_measurement(evaluator, space):
    table = Sensitivities(evaluator, space, within=True).table("kl")
    layers = [layer.name for layer in space.model.quantizable]
    assert len(table.pairs) == len(layers)
    place = {v.name: i for i, v in enumerate(space.variables)}
    for (first, second), rises in list(table.pairs.items())[:4]:
        key = [len(v.candidates) - 1 for v in space.variables]
        key[place[first]] = key[place[second]] = 0
        assert table.predict(space, space.policy(key)) == pytest.approx(evaluator.evaluate(space.policy(key)).kl)
        assert all(rise == 0 for rise in rises[-1]) and all(row[-1] == 0 for row in rises)


def test_what_cannot_be_measured_is_said(evaluator, space):
    with pytest.raises(SearchError, match=r"no sensitivity by 'hope': there are accuracy.*hessian"):
        Sensitivities(evaluator, space).table("hope")
