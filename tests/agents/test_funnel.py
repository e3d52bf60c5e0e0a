"""The funnel's own parts: policies as rows of bytes, and the levels of a trade-off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from haqsearch.agents.funnel import Funnel, _distinct, _rows
from haqsearch.testing.toy import toy_problem

KEYS = arrays.arrays(np.intp, st.tuples(st.integers(0, 30), st.integers(1, 6)), elements=st.integers(0, 300))


@given(KEYS)
def test_distinct_policies_are_those_of_numpy_in_its_order(keys):
    assert np.array_equal(_distinct(keys), np.unique(keys, axis=0))


@given(KEYS, st.integers(0, 30))
def test_rows_are_equal_where_policies_are(keys, some):
    known = {tuple(key) for key in keys[:some]}
    assert np.isin(_rows(keys), _rows(keys[:some])).tolist() == [tuple(key) in known for key in keys]


@pytest.mark.parametrize("metrics", [("bops",), ("size_bytes", "bops")])
def test_levels_spread_evenly_between_the_least_and_the_reference(metrics):
    problem = replace(toy_problem(tradeoff=metrics), limits=())
    agent, least = Funnel(problem), problem.costing.costs(problem.space.policy([0] * len(problem.space.variables)))
    levels = [{limit.metric: limit.value for limit in agent._level(turn).limits} for turn in range(64)]
    for metric in metrics:
        low, high = least[metric], problem.reference[metric]
        shares = np.array([(level[metric] - low) / (high - low) for level in levels])
        assert 0 <= shares.min() and shares.max() <= 1
        counts = np.histogram(shares, bins=8, range=(0, 1))[0]
        assert 6 <= counts.min() and counts.max() <= 10, counts
