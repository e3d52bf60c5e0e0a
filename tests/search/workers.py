"""What other processes of these tests run: Ray actors call the factories, the kill test runs this file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from haqsearch.agents import build_agent
from haqsearch.search.ladder import Ladder
from haqsearch.search.loop import Event, run_search
from haqsearch.search.pool import Part, SerialPool
from haqsearch.search.records import best_of, read_records, write_best
from haqsearch.search.storage import exclusive, open_study
from haqsearch.spec import Evaluation, Policy
from haqsearch.testing.toy import AdditiveLoss, toy_model, toy_problem

SAMPLES = 40
LADDER = Ladder((10,), trial_run=5)


def additive(config: dict) -> Callable[[Policy], Evaluation]:
    return AdditiveLoss(toy_model(config["layers"]), config["seed"])


def mortal(config: dict) -> Callable[[Policy], Evaluation]:
    """Kills its own process: always for policies in ``deadly``, once for those in ``shaky``; ``folder`` remembers."""
    good = additive(config)

    def evaluate(policy: Policy) -> Evaluation:
        mark = Path(config["folder"]) / policy.digest
        if policy.digest in config["deadly"] or (policy.digest in config["shaky"] and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if policy.digest in config["wrong"]:
            raise ValueError("a layer is missing")
        return good(policy)

    return evaluate


def in_parts(config: dict) -> Callable[..., Evaluation]:
    """``additive`` over ``SAMPLES`` samples, each with noise of its own, to be scored part by part."""
    good = additive(config)

    def evaluate(policy: Policy, part: Part = (0, None)) -> Evaluation:
        first, last = part[0], part[1] or SAMPLES
        noise = np.random.default_rng(int(policy.digest, 16) % 2**32).normal(1, 0.05, SAMPLES)[first:last].mean()
        return replace(good(policy), loss=float((good(policy).loss or 0.0) * noise), samples=last - first)

    return evaluate


def broken(config: dict) -> Callable[[Policy], Evaluation]:
    raise FileNotFoundError("no weights at weights.safetensors")


def logged_search(folder: Path, agent: str, evaluations: int, pause: float) -> None:
    """A search in ``folder`` whose evaluator takes ``pause`` seconds and then appends the policy's digest to a log.

    Its best policy is kept in ``best.json``. An agent called ``NAME+ladder`` searches on the rungs of ``LADDER``.
    """
    problem = toy_problem()
    score = in_parts({"layers": len(problem.space.model), "seed": 0})

    def evaluate(policy: Policy, part: Part = (0, None)) -> Evaluation:
        time.sleep(pause)
        with (folder / "evaluated.log").open("a") as log:
            log.write(f"{policy.digest}:{part[0]}\n")
        return score(policy, part)

    def keep_best(event: Event) -> None:
        if event.best is event.record:
            write_best(folder / "best.json", event.record)

    with exclusive(folder):
        study = open_study(folder, "kill", "recipe")
        if known := best_of(read_records(study)):
            write_best(folder / "best.json", known)
        name, _, on_ladder = agent.partition("+")
        chosen = build_agent(name, problem, seed=1, max_evaluations=evaluations)
        ladder = LADDER if on_ladder else Ladder()
        run_search(problem, chosen, SerialPool(evaluate), study, evaluations, keep_best, ladder=ladder)


if __name__ == "__main__":
    logged_search(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
