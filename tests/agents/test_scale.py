"""Sensitivity tables have units of their own; agents are not to notice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from haqsearch.agents import build_agent
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem


@pytest.mark.parametrize("name", ["funnel", "ilp", "greedy"])
def test_a_table_in_another_unit_gives_the_same_search(name):
    """A power of two multiplies without rounding: proposals are the same, not alike."""
    problem = toy_problem(6)
    table = problem.sensitivity
    proposals = []
    for factor in (2.0**-12, 1.0, 2.0**12):
        rise = {variable: tuple(factor * value for value in values) for variable, values in table.rise.items()}
        scaled = replace(table, base=factor * table.base, rise=rise)
        other = replace(problem, measure=lambda scaled=scaled: scaled)
        study = new_study(other)
        run_search(other, build_agent(name, other, 0), SerialPool(AdditiveLoss(other.space.model, seed=3)), study, 14)
        proposals.append([record.policy.digest for record in read_records(study)])
    assert len(proposals[0]) == 14
    assert proposals[0] == proposals[1] == proposals[2]
