"""What other processes of these tests run: Ray actors call the factories, the kill test runs this file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from haqsearch.agents import build_agent
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.storage import exclusive, open_study
from haqsearch.spec import Evaluation, Policy
from haqsearch.testing.agent_cases import AdditiveLoss, toy_model, toy_problem


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


def broken(config: dict) -> Callable[[Policy], Evaluation]:
    raise FileNotFoundError("no weights at weights.safetensors")


def logged_search(folder: Path, agent: str, evaluations: int, pause: float) -> None:
    """A search in ``folder`` whose evaluator takes ``pause`` seconds and then appends the policy's digest to a log."""
    problem = toy_problem()
    good = AdditiveLoss(problem.space.model)

    def evaluate(policy: Policy) -> Evaluation:
        time.sleep(pause)
        with (folder / "evaluated.log").open("a") as log:
            log.write(f"{policy.digest}\n")
        return good(policy)

    with exclusive(folder):
        study = open_study(folder, "kill", "recipe")
        chosen = build_agent(agent, problem, seed=1, max_evaluations=evaluations)
        run_search(problem, chosen, SerialPool(evaluate), study, evaluations)


if __name__ == "__main__":
    logged_search(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
