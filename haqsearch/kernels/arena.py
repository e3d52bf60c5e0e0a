"""Places for tensors in one arena: tensors that are never alive together share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Lifetime:
    """A buffer of ``size`` bytes that is written at step ``first`` and read for the last time at step ``last``."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def place(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """(offset of each buffer, bytes of the arena). Buffers alive at the same step never overlap.

    Largest first, each at the lowest gap that takes it [Pisarchyk, Lee 2020, "greedy by size"]. Kept: the policies of a search
    differ in widths, and seldom in what is where when.
    """
    offsets, end = _place(tuple(buffers))
    return list(offsets), end


@lru_cache(maxsize=64)
def _place(buffers: tuple[Lifetime, ...]) -> tuple[tuple[int, ...], int]:
    offsets = [0] * len(buffers)
    placed: list[int] = []
    end = 0
    for i in sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, i)):
        at = 0
        for j in sorted((j for j in placed if buffers[j].meets(buffers[i])), key=lambda j: offsets[j]):
            if at + buffers[i].size <= offsets[j]:
                break
            at = max(at, offsets[j] + buffers[j].size)
        offsets[i] = at
        placed.append(i)
        end = max(end, at + buffers[i].size)
    return tuple(offsets), end


def busiest(buffers: Sequence[Lifetime]) -> int:
    """Largest sum of the sizes of buffers alive at one step: no arena can be smaller."""
    steps = {b.first for b in buffers}
    return max((sum(b.size for b in buffers if b.first <= step <= b.last) for step in steps), default=0)
