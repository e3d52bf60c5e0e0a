from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import PolicyError
from haqsearch.spec import SearchSpace, Sensitivity
from haqsearch.spec.sensitivity import monotone
from haqsearch.testing.toy import toy_model

SPACE = SearchSpace.build(toy_model(5), (2, 4, 8), (2, 4, 8))
numbers = st.floats(-10, 10)


@given(st.lists(numbers, min_size=1, max_size=8))
def test_smoothed_rises_never_rise_with_bits_and_are_the_least_such(values):
    smooth = monotone(values)
    assert all(a >= b >= 0 for a, b in itertools.pairwise(smooth)) or len(smooth) == 1
    assert all(s >= v for s, v in zip(smooth, values, strict=True))
    assert all(s == max([0.0, *values[i:]]) for i, s in enumerate(smooth))
    assert monotone(smooth) == smooth


def table(draw_rise=lambda i, c: 4.0 ** -(i + c)) -> Sensitivity:
    rise = {v.name: tuple(draw_rise(i, c) for c in range(len(v.candidates))) for i, v in enumerate(SPACE.variables)}
    first, second = SPACE.variables[0].name, SPACE.variables[2].name
    pairs = {(first, second): ((0.5, 0.25, 0.0), (0.1, 0.0, 0.0), (0.0, 0.0, 0.0))}
    return Sensitivity("kl", 0.125, rise, {v.name: tuple(map(str, v.candidates)) for v in SPACE.variables}, pairs)


@given(st.data())
def test_a_prediction_is_the_sum_that_it_says(data):
    key = [data.draw(st.integers(0, len(v.candidates) - 1)) for v in SPACE.variables]
    expected = 0.125 + sum(4.0 ** -(i + c) for i, c in enumerate(key)) + table().pairs[
        SPACE.variables[0].name, SPACE.variables[2].name
    ][key[0]][key[2]]  # fmt: skip
    assert table().predict(SPACE, SPACE.policy(key)) == pytest.approx(expected)


def test_a_table_survives_json():
    assert Sensitivity.from_json(json.loads(json.dumps(table().to_json()))) == table()
    with pytest.raises(PolicyError, match="schema_version is 7"):
        Sensitivity.from_json({**table().to_json(), "schema_version": 7})


def test_a_table_of_other_candidates_is_refused():
    other = SearchSpace.build(toy_model(5), (2, 8), (2, 4, 8))
    assert table().check(SPACE) == table()
    with pytest.raises(PolicyError, match=r"block.0.weight has the candidates int2, int8.*int2, int4, int8"):
        table().check(other)
