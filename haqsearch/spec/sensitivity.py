"""What each single decision does to the score: the free rung of the ladder, and what exact solvers add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from haqsearch.errors import PolicyError
from haqsearch.spec.policy import Policy
from haqsearch.spec.space import SearchSpace

SCHEMA_VERSION = 1

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Sensitivity:
    """Rise of ``measure`` when one variable leaves its widest candidate and all others keep theirs.

    measure  what rises, always made small: an objective (``spec.OBJECTIVES``), measured on whole networks, or the name of a
             measure calculated without evaluating any (``haqsearch.evaluate.measures``: ``output_mse``, ``hessian``, a user's).
             Each has its own unit; agents go by ratios alone: a table multiplied by a number is the same to them
    base     its value with every variable at its widest
    rise     per variable the rise at each of ``formats``, few bits to many; 0 at the last
    formats  per variable its candidates, as text
    pairs    per pair of variables (in the order of the space) the rise of both together less the sum of both alone
    """

    measure: str
    base: float
    rise: Mapping[str, tuple[float, ...]]
    formats: Mapping[str, tuple[str, ...]]
    pairs: Mapping[tuple[str, str], Table] = field(default_factory=dict)

    def check(self, space: SearchSpace) -> Sensitivity:
        """This table, if it is of ``space``; PolicyError names the variable that it lacks or has other candidates of."""
        for variable in space.variables:
            here = tuple(map(str, variable.candidates))
            if self.formats.get(variable.name) != here:
                raise PolicyError(
                    f"sensitivity: {variable.name} has the candidates {', '.join(here)}, the table was measured for "
                    f"{', '.join(self.formats.get(variable.name, ('none',)))}; measure it anew"
                )
        return self

    def predict(self, space: SearchSpace, policy: Policy) -> float:
        """``base`` and every rise that ``policy`` asks for, added up. Raises PolicyError for a format outside the space."""
        taken = dict(zip((v.name for v in space.variables), space.indices(policy), strict=True))
        total = self.base + sum(self.rise[name][index] for name, index in taken.items())
        return total + sum(table[taken[a]][taken[b]] for (a, b), table in self.pairs.items())

    def losses(self, space: SearchSpace) -> list[tuple[float, ...]]:
        """Per variable of ``space`` the rise at each candidate, smoothed: more bits never hurt, and none help below zero.

        Where a width makes no difference that could be measured, noise would decide; the least non-increasing sequence above
        the measured one lets the wider never look worse.
        """
        return [monotone(self.rise[variable.name]) for variable in space.variables]

    def to_json(self) -> dict[str, Any]:
        """JSON object; inverse of ``from_json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "measure": self.measure,
            "base": self.base,
            "rise": {name: list(values) for name, values in self.rise.items()},
            "formats": {name: list(values) for name, values in self.formats.items()},
            "pairs": [
                {"variables": list(names), "rise": [list(r) for r in table]} for names, table in self.pairs.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Raises PolicyError for another version."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise PolicyError(
                f"sensitivity: schema_version is {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
            )
        pairs = {
            (entry["variables"][0], entry["variables"][1]): tuple(tuple(row) for row in entry["rise"])
            for entry in data["pairs"]
        }
        return cls(
            data["measure"],
            data["base"],
            {name: tuple(values) for name, values in data["rise"].items()},
            {name: tuple(values) for name, values in data["formats"].items()},
            pairs,
        )


def monotone(values: Sequence[float]) -> tuple[float, ...]:
    """The least sequence that is at least ``values`` and at least 0, and never rises from few bits to many."""
    found: list[float] = []
    for value in reversed(values):
        found.append(max(value, found[-1] if found else 0.0, 0.0))
    return tuple(reversed(found))
