"""The second search: at a dearer and truer fidelity, from the best policies of the first.

A policy's score with weights rounded layer by layer says which policies are worth a second look, not which of these is best
once its weights are rounded in network order, where layers make up for those before them. ResNet-20 at 3 bits on average: the
first search's best has the least error of all layer by layer (1.50 against 2.43 of 3 bits everywhere), and rounded in network
order more than they (0.95 against 0.93; and 0.72 can be had).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from haqsearch.agents.problem import Problem
from haqsearch.errors import SearchError
from haqsearch.search.records import Record
from haqsearch.spec import Policy

LEADERS = 3  # of the first search that the second begins with
DIFFERENT = 2  # layers in which they differ from one another at least: neighbours of the best would tell little


def leading(records: Sequence[Record]) -> list[Record]:
    """Feasible records, best score first. Raises SearchError if there is none."""
    found = sorted((r for r in records if r.feasible), key=lambda r: (-(r.score or 0.0), r.number))
    if not found:
        raise SearchError("no evaluated policy is inside the budget; look at trials.parquet for what was tried")
    return found


def refined(problem: Problem, records: Sequence[Record]) -> tuple[Problem, str]:
    """The second search's problem, and its study's name: another one where the first search came to other leaders."""
    best: list[Policy] = []
    for record in leading(records):
        if all(sum(record.policy[name] != other[name] for name in other) >= DIFFERENT for other in best):
            best.append(record.policy)
        if len(best) == LEADERS:
            break
    name = hashlib.sha256(" ".join(policy.digest for policy in best).encode()).hexdigest()[:12]
    return replace(problem, warm_starts=tuple(best)), f"refined-{name}"
