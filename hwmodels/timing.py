"""Times calls on a machine that others may use: in turns, until the runs agree or the patience is at an end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from time import perf_counter


@dataclass(frozen=True)
class Patience:
    """When a timing is good enough: after ``least`` runs or more, when it is certain within ``spread``; at most ``most`` runs
    or ``seconds``. The ``statistic`` of the runs is their ``median``, uncertain by the distance of their quartiles; or the
    ``least``, uncertain by how far the next two are, which also settles on a machine that others use."""

    least: int = 7
    most: int = 200
    spread: float = 0.05
    seconds: float = 0.5
    statistic: str = "median"

    def value(self, times: Sequence[float]) -> float:
        """The statistic."""
        return median(times) if self.statistic == "median" else min(times)

    def uncertainty(self, times: Sequence[float]) -> float:
        """Seconds that the statistic may be off."""
        if self.statistic == "median":
            low, _, high = quantiles(times, n=4)
            return high - low
        ordered = sorted(times)
        return ordered[min(2, len(ordered) - 1)] - ordered[0]

    def settled(self, taken: Sequence[Sequence[float]]) -> bool:
        """Whether runs of one program, or the last less the first of two programs', are certain."""
        values = [self.value(times) for times in taken]
        result = values[0] if len(values) == 1 else values[-1] - values[0]
        return sum(map(self.uncertainty, taken)) <= self.spread * result


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: median and least of ``repeats`` runs, and whether they ``settled`` within the patience."""

    median_s: float
    least_s: float
    settled: bool
    repeats: int


def time_calls(
    calls: Sequence[Callable[[], object]],
    patience: Patience,
    settled: Callable[[Sequence[Sequence[float]]], bool] | None = None,
    warm: bool = False,
) -> list[list[float]]:
    """Seconds of runs of each of ``calls``, which take turns, every other time in reverse order, until they are ``settled``
    (by default: the difference of the last and the first is). ``warm``: a run before each that is timed, which finds the
    caches as the other calls left them."""
    settled = settled or patience.settled
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    turns, end = list(range(len(calls))), perf_counter() + patience.seconds
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(taken[0]) < patience.most:
            for i in turns:
                if warm:
                    calls[i]()
                start = perf_counter()
                calls[i]()
                taken[i].append(perf_counter() - start)
            turns.reverse()
            if len(taken[0]) >= patience.least:
                if settled(taken) or perf_counter() > end:
                    break
    finally:
        if collecting:
            gc.enable()
    return taken


def time_apart(calls: Sequence[Callable[[], object]], patience: Patience) -> list[Timing]:
    """Each of ``calls`` on its own, but in turns: whatever the machine is busy with in the meantime slows all of them.
    The patience is with each."""
    longer = replace(patience, seconds=patience.seconds * len(calls))
    found = time_calls(calls, longer, lambda taken: all(patience.settled([times]) for times in taken), len(calls) > 1)
    return [Timing(median(times), min(times), patience.settled([times]), len(times)) for times in found]


def time_call(call: Callable[[], object], patience: Patience | None = None) -> Timing:
    """One call, on its own."""
    return time_apart([call], patience or Patience())[0]
