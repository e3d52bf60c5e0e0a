"""Evaluation by Ray actors: the same code on the cores of one machine and on a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import ray
from ray.exceptions import RayActorError

from haqsearch.errors import SearchError
from haqsearch.search.pool import Evaluate, Part, evaluate_safely
from haqsearch.search.records import policy_text, read_policy
from haqsearch.spec import Evaluation, Policy


@dataclass
class _Worker:
    """A place for one evaluation at a time; its actor is replaced when it dies."""

    actor: Any


@dataclass(frozen=True)
class _Job:
    worker: _Worker
    policy: Policy
    part: Part | None
    answer: Any


class RayPool:
    """``workers`` actors; each calls ``factory(config)`` once and then evaluates policies with what it returned.

    factory             ``module:function`` that takes the config and returns ``evaluate(policy) -> Evaluation``; it
                        loads model and data in the actor, so nothing heavy is sent around. The driver's ``sys.path``
                        is the actors' too.
    config              JSON-able
    workers             >= 1, policies evaluated at a time
    threads_per_worker  >= 1, cores asked of Ray per actor, and OMP_NUM_THREADS in it
    gpus_per_worker     >= 0, share of a GPU asked of Ray per actor

    Uses the cluster at RAY_ADDRESS if that is set, or the Ray the caller has started; else starts its own on this
    machine. An actor that dies (out of memory, a crash in native code) is restarted once and given its policy again;
    if it dies of it again, the policy's evaluation has failed. Raises SearchError if the workers cannot be started.
    """

    def __init__(
        self,
        factory: str,
        config: Mapping[str, Any],
        workers: int,
        threads_per_worker: int = 1,
        gpus_per_worker: float = 0.0,
    ) -> None:
        if workers < 1 or threads_per_worker < 1:
            raise SearchError(
                f"a Ray pool needs at least one worker and one thread each, not {workers} and {threads_per_worker}"
            )
        if ":" not in factory:
            raise SearchError(f"factory {factory!r}: write module:function")
        self.capacity = workers
        self._factory, self._config, self._threads = factory, dict(config), threads_per_worker
        self._started = not ray.is_initialized()
        if self._started:
            _start_ray(workers * threads_per_worker)
        self._remote = ray.remote(num_cpus=threads_per_worker, num_gpus=gpus_per_worker, max_restarts=0)(_Actor)
        self._idle = [_Worker(self._new_actor()) for _ in range(workers)]
        try:
            ray.get([worker.actor.ready.remote() for worker in self._idle])
        except RayActorError as error:
            self.close()
            raise SearchError(f"a Ray worker could not build its evaluator with {factory}: {_cause(error)}") from error

    def submit(self, policy: Policy, part: Part | None = None) -> _Job:
        """Start an evaluation, of all samples or a part. Raises SearchError if all workers have one."""
        if not self._idle:
            raise SearchError(f"all {self.capacity} Ray workers are busy: take a result first")
        return self._send(self._idle.pop(), policy, part)

    def result(self, handle: _Job) -> Evaluation:
        """Wait for the evaluation; the worker is idle again."""
        worker = handle.worker
        try:
            answer = self._receive(handle)
            if answer is None:
                answer = self._receive(self._send(worker, handle.policy, handle.part))
        finally:
            self._idle.append(worker)
        if answer is None:
            return Evaluation.failed(
                "the Ray worker died twice while evaluating this policy; it may have run out of memory"
            )
        return answer

    def close(self) -> None:
        """End the actors, and Ray if this pool started it. Evaluations under way are lost."""
        if self._started:
            ray.shutdown()
        elif ray.is_initialized():
            for worker in self._idle:
                ray.kill(worker.actor)
        self._idle = []

    def _new_actor(self) -> Any:
        return self._remote.remote(self._factory, self._config, self._threads, list(sys.path))

    def _send(self, worker: _Worker, policy: Policy, part: Part | None) -> _Job:
        return _Job(worker, policy, part, worker.actor.evaluate.remote(policy_text(policy), part))

    def _receive(self, job: _Job) -> Evaluation | None:
        """The answer, or None if the actor died of the question: then there is a new actor."""
        try:
            return Evaluation.from_json(ray.get(job.answer))
        except RayActorError:
            job.worker.actor = self._new_actor()
            return None


class _Actor:
    """Lives in a Ray worker process. Policies and evaluations travel as plain JSON objects."""

    def __init__(self, factory: str, config: dict[str, Any], threads: int, path: list[str]) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before the factory's module imports torch
        sys.path[:] = path
        module, _, function = factory.partition(":")
        self._evaluate: Evaluate = getattr(import_module(module), function)(config)

    def ready(self) -> bool:
        return True

    def evaluate(self, policy: dict[str, str], part: Part | None) -> dict[str, Any]:
        return evaluate_safely(self._evaluate, read_policy(policy), part).to_json()


def _start_ray(cores: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # actors see the GPU also when none is asked of Ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        # Results are a few hundred bytes: the smallest object store will do.
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=80 * 2**20, **quiet)


def _cause(error: Exception) -> str:
    """The last line of what an actor said when it died: the exception of the user's factory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
