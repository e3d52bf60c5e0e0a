"""Who evaluates: a pool takes policies and gives evaluations back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Protocol

from haqsearch.spec import Evaluation, Policy

Part = tuple[int, int | None]
"""Samples of the search split, first to last but one; None: to the end."""

Evaluate = Callable[..., Evaluation]
"""``evaluate(policy)`` scores all samples; under a ladder ``evaluate(policy, part=part)`` scores those of a part."""


class Pool(Protocol):
    """Evaluates up to ``capacity`` policies at a time. A failure is an Evaluation with ``error``, no exception."""

    @property
    def capacity(self) -> int: ...

    def submit(self, policy: Policy, part: Part | None = None) -> Any:
        """Start an evaluation, of all samples or a part; the handle is for ``result``.

        At most ``capacity`` handles may be open.
        """
        ...

    def result(self, handle: Any) -> Evaluation:
        """Wait for one evaluation. Once per handle."""
        ...

    def close(self) -> None: ...


def evaluate_safely(evaluate: Evaluate, policy: Policy, part: Part | None = None) -> Evaluation:
    """What ``evaluate`` returns, or a failed Evaluation saying what it raised."""
    start = perf_counter()
    try:
        return evaluate(policy) if part is None else evaluate(policy, part=part)
    except Exception as error:
        return Evaluation.failed(f"{type(error).__name__}: {error}", perf_counter() - start)


class SerialPool:
    """One policy at a time, in this process."""

    capacity = 1

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate

    def submit(self, policy: Policy, part: Part | None = None) -> tuple[Policy, Part | None]:
        return policy, part

    def result(self, handle: tuple[Policy, Part | None]) -> Evaluation:
        return evaluate_safely(self._evaluate, *handle)

    def close(self) -> None:
        pass


class ThreadPool:
    """``capacity`` policies at a time, each in a thread of this process: for evaluations that are long, and mostly arithmetic
    which leaves the interpreter's lock to others.
    """

    def __init__(self, evaluate: Evaluate, capacity: int) -> None:
        self.capacity, self._evaluate, self._threads = capacity, evaluate, ThreadPoolExecutor(capacity)

    def submit(self, policy: Policy, part: Part | None = None) -> Future[Evaluation]:
        return self._threads.submit(evaluate_safely, self._evaluate, policy, part)

    def result(self, handle: Future[Evaluation]) -> Evaluation:
        return handle.result()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
