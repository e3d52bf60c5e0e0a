"""Every agent of the registry passes the kit that users get."""

from __future__ import annotations

from haqsearch.agents import AGENTS, build_agent
from haqsearch.testing.agent_cases import AgentCases


class _Registered(AgentCases):
    name: str

    def build(self, problem, seed):
        return build_agent(self.name, problem, seed, max_evaluations=self.evaluations)


class TestRandom(_Registered):
    name = "random"


class TestUniform(_Registered):
    name = "uniform"


class TestFunnel(_Registered):
    name = "funnel"
    evaluations = 16


class TestILP(_Registered):
    name = "ilp"
    evaluations = 16


class TestGreedy(_Registered):
    name = "greedy"
    evaluations = 16


class TestTPE(_Registered):
    name = "tpe"


class TestDDPG(_Registered):
    name = "ddpg"
    evaluations = 20  # of which four are random


class TestTD3(_Registered):
    name = "td3"
    evaluations = 16  # of which three are random


class TestEvolution(_Registered):
    name = "evolution"


class TestGP(_Registered):
    name = "gp"
    evaluations = 16  # ten are random


class TestNSGA2(_Registered):
    name = "nsga2"


class TestNSGA3(_Registered):
    name = "nsga3"


def test_no_agent_of_the_registry_is_forgotten_here():
    assert {case.name for case in _Registered.__subclasses__()} == set(AGENTS)
