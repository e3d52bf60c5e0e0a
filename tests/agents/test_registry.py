from __future__ import annotations

import subprocess
import sys

import pytest

from haqsearch.agents import AGENTS, build_agent
from haqsearch.agents.random import Random
from haqsearch.errors import RecipeError
from haqsearch.testing.toy import toy_problem

PROBLEM = toy_problem()


class Mine(Random):
    def __init__(self, problem, seed, flavour="plain"):
        super().__init__(problem, seed)
        self.flavour = flavour


@pytest.mark.parametrize("name", AGENTS)
def test_registered_agents_are_built(name):
    agent = build_agent(name, PROBLEM, 3, max_evaluations=50)
    assert (agent.name, agent.seed, agent.max_evaluations) == (name, 3, 50)


def test_an_agent_of_the_users_own_is_built():
    agent = build_agent(f"{__name__}:Mine", PROBLEM, 3, max_evaluations=50, flavour="sour")
    assert (agent.flavour, agent.name) == ("sour", "mine")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpdg", {}, "did you mean 'ddpg'"),
        ("xyzzy", {}, "my_module:MyAgent"),
        ("no_such_module:Agent", {}, "cannot be imported"),
        (f"{__name__}:Missing", {}, "cannot be imported"),
        (f"{__name__}:pytest", {}, "not a subclass"),
        ("ddpg", {"warmpu": 3}, "did you mean 'warmup'"),
    ],
)
def test_mistakes_are_explained(name, options, message):
    with pytest.raises(RecipeError, match=message):
        build_agent(name, PROBLEM, 0, **options)


def test_importing_the_registry_loads_nothing_heavy():
    code = (
        "import sys, haqsearch.agents, haqsearch.search\n"
        "heavy = {'torch', 'optuna', 'ray', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_learners_load_torch():
    code = (
        "import sys\n"
        "from haqsearch.agents import build_agent\n"
        "from haqsearch.testing.toy import toy_problem\n"
        "build_agent('tpe', toy_problem(), 0)\n"
        "sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
