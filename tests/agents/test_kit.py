"""The kit catches agents that break a law, and says what to do about it."""

from __future__ import annotations

import random

import pytest

from haqsearch.agents.random import Random
from haqsearch.testing.agent_cases import AgentCases


class Forgetful(Random):
    """Remembers in itself what only the study keeps."""

    def propose(self, study, trial):
        self.calls = getattr(self, "calls", 0) + 1
        return self.problem.space.policy([self.calls % len(v.candidates) for v in self.problem.space.variables])


class Careless(Random):
    """Draws from the generator of the user's program."""

    def propose(self, study, trial):
        return self.problem.policy_of({v.name: random.randrange(len(v.candidates)) for v in self.problem.free})


class Hasty(Random):
    """Takes for granted that something has been evaluated, or that scores differ."""

    def propose(self, study, trial):
        scores = [t.value for t in self.completed(study)]
        low, high = min(scores), max(scores)
        share = (scores[-1] - low) / (high - low) if len(scores) > 1 else 0.5
        return self.problem.policy_of({v.name: int(share * (len(v.candidates) - 1)) for v in self.problem.free})


class Stubborn(Random):
    """Asks for one policy for ever, past the base class."""

    def sample_relative(self, study, trial, search_space):
        super().sample_relative(study, trial, search_space)
        return self.problem.params_of(self.problem.known_feasible)


class Boundless(Random):
    """Answers Optuna itself, and so leaves the budget."""

    def sample_relative(self, study, trial, search_space):
        return super().sample_relative(study, trial, search_space) | {
            v.name: len(v.candidates) - 1 for v in self.problem.free
        }


class Blocking(Random):
    """Gives up when an evaluation fails."""

    def propose(self, study, trial):
        if len(self.completed(study)) < trial.number:
            raise RuntimeError("a trial is missing")
        return super().propose(study, trial)


class Hoarding(Random):
    """Learns from every trial it has seen, of whichever study."""

    def propose(self, study, trial):
        self.seen = getattr(self, "seen", [])
        self.seen += self.new(self.completed(study))
        best = max(self.seen, key=lambda t: t.value).params
        rng = self.rng(trial)
        return self.problem.policy_of({name: value if rng.random() < 0.7 else 0 for name, value in best.items()})

    def new(self, completed):
        return [trial for trial in completed if trial.number >= len(self.seen)]


class HoardingFromLonger(Hoarding):
    """Starts over in a study that is shorter than what it has seen, and in no other."""

    def new(self, completed):
        if len(completed) < len(self.seen):
            self.seen = []
        return super().new(completed)


def cases(kind):
    class Cases(AgentCases):
        evaluations = 16

        def build(self, problem, seed):
            return kind(problem, seed)

    return Cases()


@pytest.mark.parametrize(
    ("kind", "law", "message"),
    [
        (Forgetful, "a_restarted_agent_continues_as_if_it_had_not_stopped", r"function of self\.completed\(study\)"),
        (Careless, "the_global_random_state_is_the_users", r"draw from self\.rng\(trial\)"),
        (Careless, "the_same_seed_gives_the_same_search", r"draw from self\.rng\(trial\)"),
        (Hasty, "scores_that_are_no_numbers_are_failures", "ValueError.*first eight.*can be empty"),
        (Hasty, "scores_that_say_nothing_are_survived", "ZeroDivisionError.*scores equal, zero or huge"),
        (Stubborn, "no_policy_is_proposed_twice", "leave sample_relative to the base class"),
        (Stubborn, "scores_that_say_nothing_are_survived", "leave sample_relative to the base class"),
        (Boundless, "policies_are_in_the_space_and_inside_every_limit", "outside the budget"),
        (Hoarding, "nothing_is_learned_from_another_study", "start over when they differ"),
        (HoardingFromLonger, "nothing_is_learned_from_another_study", "start over when they differ"),
        (Blocking, "scores_that_are_no_numbers_are_failures", "RuntimeError: a trial is missing"),
        (Blocking, "several_evaluations_at_a_time", "RuntimeError: a trial is missing"),
    ],
)
def test_a_broken_law_is_named_with_its_mend(kind, law, message):
    with pytest.raises(AssertionError, match=message):
        getattr(cases(kind), f"test_{law}")()


def test_an_agent_that_keeps_them_passes():
    good = cases(Random)
    for law in [name for name in dir(good) if name.startswith("test_")]:
        getattr(good, law)()


def test_a_kit_without_an_agent_says_what_to_write():
    with pytest.raises(NotImplementedError, match="override build"):
        AgentCases().test_no_policy_is_proposed_twice()
