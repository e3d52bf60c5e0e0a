"""An agent that learns proposes better policies late in a search than early, and than chance does: not only its best rises."""

from __future__ import annotations

from statistics import fmean

from haqsearch.agents import build_agent
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.search.records import read_records
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem

WINDOW = 15


def first_and_last(name: str, seed: int) -> tuple[float, float]:
    """Mean accuracies of the agent's first and last proposals."""
    problem, study = toy_problem(objective="accuracy"), new_study()
    agent = build_agent(name, problem, seed, max_evaluations=70)
    run_search(problem, agent, SerialPool(AdditiveLoss(problem.space.model, seed)), study, 70)
    scores = [record.score for record in read_records(study) if record.source == name]
    return fmean(scores[:WINDOW]), fmean(scores[-WINDOW:])


def test_what_haqs_agent_proposes_gets_better():
    for seed in range(2):
        (first, last), (_, chance) = first_and_last("ddpg", seed), first_and_last("random", seed)
        print(f"seed {seed}: ddpg {first:.4f} -> {last:.4f}, random {chance:.4f}")
        assert last > first
        assert last > chance
