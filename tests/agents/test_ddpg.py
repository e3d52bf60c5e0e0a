"""HAQ's agent, and the defects of HAQ's published code that belong to an agent: each test names one."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch

from haqsearch.agents.actor_critic import Learner
from haqsearch.agents.ddpg import DDPG, _truncated_normal
from haqsearch.agents.td3 import TwinLearner
from haqsearch.search.loop import run_search
from haqsearch.search.pool import SerialPool
from haqsearch.spec import Choice
from haqsearch.testing.toy import AdditiveLoss, new_study, toy_problem


@pytest.fixture(scope="module")
def searched():
    problem = toy_problem(share=0.4)
    agent, study = DDPG(problem, seed=1, max_evaluations=30), new_study()
    run_search(problem, agent, SerialPool(AdditiveLoss(problem.space.model)), study, 30)
    agent.learn(study)
    return problem, agent, study


def previous_of(problem, params):
    """The previous-action feature that agrees with a trial's parameters: bits of the step before over 8."""
    return [1.0, *(v.candidates[params[v.name]].bits / 8 for v in problem.free[:-1])]


def test_replay_holds_what_was_evaluated(searched):
    """HAQ stores only the un-reduced actions beside the reduced policy's reward (rl_quantize.py:64, 99-100)."""
    problem, agent, study = searched
    cut = [t for t in study.trials if t.user_attrs["proposal"] != t.user_attrs["policy"]]
    assert cut, "under this budget some proposal has to be cut, or the test shows nothing"
    for trial in study.trials:
        for variable, (_, action, *_) in zip(problem.free, agent.episodes(trial)[0], strict=True):
            count = len(variable.candidates)
            chosen = variable.candidates[int(action * count)]
            layer = Choice.parse(trial.user_attrs["policy"][variable.layers[0]])
            assert chosen == (layer.weight if variable.role == "weight" else layer.activation)


def test_replay_holds_what_was_wished_for_as_an_episode_of_its_own(searched):
    """The actor's own actions must not be strange to the critic; they led to the cut policy's reward."""
    problem, agent, study = searched
    stored = [transition for trial in study.trials for walk in agent.episodes(trial) for transition in walk]
    assert len(agent._learner.replay) == min(len(stored), agent._learner.replay.maxlen)
    for trial in study.trials:
        was_cut = trial.user_attrs["proposal"] != trial.user_attrs["policy"]
        _, *wished = agent.episodes(trial)
        assert len(wished) == was_cut
        for walk in wished:
            for variable, (_, action, reward, *_) in zip(problem.free, walk, strict=True):
                layer = Choice.parse(trial.user_attrs["proposal"][variable.layers[0]])
                chosen = variable.candidates[int(action * len(variable.candidates))]
                assert chosen == (layer.weight if variable.role == "weight" else layer.activation)
                assert reward == agent.reward(trial.value)


def test_a_trial_of_nobodys_proposal_is_learned_from_as_it_is(searched):
    _, agent, study = searched
    stranger = deepcopy(study.trials[5])
    del stranger.user_attrs["proposal"]
    assert len(agent.episodes(stranger)) == 1


def test_previous_action_is_the_constrained_one(searched):
    """HAQ's stored states keep the bits from before the budget cut them."""
    problem, agent, study = searched
    for trial in study.trials:
        states = [state for state, *_ in agent.episodes(trial)[0]]
        assert [float(state[8]) for state in states] == pytest.approx(previous_of(problem, trial.params))


def test_an_episode_starts_the_same_whatever_the_last_one_was(searched):
    """HAQ edits layer_embedding in place: reset() returns the last episode's bits (linear_quantize_env.py:167)."""
    _, agent, study = searched
    first = {tuple(agent.episodes(trial)[0][0][0]) for trial in study.trials}
    assert len(first) == 1
    assert next(iter(first))[8] == 1.0


def test_the_flag_means_one_thing(searched):
    """HAQ's "radio button" is 1 for weights at the start of an episode and 1 for "activation next" after (:143-149)."""
    problem, agent, study = searched
    for trial in study.trials[:3]:
        flags = [state[9] for state, *_ in agent.episodes(trial)[0]]
        assert flags == [1.0 if variable.role == "weight" else 0.0 for variable in problem.free]


def test_pinned_layers_are_never_moved(searched):
    """HAQ pins first and last only inside the loop that cuts: a policy within budget is never pinned (:180-190)."""
    problem, agent, study = searched
    assert {"block.0.weight", "head.activation"}.isdisjoint(variable.name for variable in problem.free)
    for trial in study.trials:
        for attribute in ("policy", "proposal"):
            assert trial.user_attrs[attribute]["block.0"] == "w8a8"
            assert trial.user_attrs[attribute]["head"] == "w8a8"
        assert len(agent.episodes(trial)[0]) == len(problem.free)


def test_there_is_no_sentinel_among_the_actions(searched):
    """HAQ writes -1 bits for the first layer's activation, which then indexes the table's 7-bit column (:199, :228)."""
    _, agent, study = searched
    actions = [action for trial in study.trials for _, action, *_ in agent.episodes(trial)[0]]
    assert min(actions) > 0.0
    assert max(actions) < 1.0


def test_updates_run_on_todays_numpy_and_torch(searched):
    """HAQ's first update crashes: np.float is gone (ddpg.py:140), .view(-1) of a strided slice (utils.py:107)."""
    _, agent, _ = searched
    fresh = Learner(10, 300, agent.seed)
    changed = [
        not torch.equal(a, b) for a, b in zip(agent._learner.actor.parameters(), fresh.actor.parameters(), strict=True)
    ]
    assert all(changed)
    assert all(torch.isfinite(p).all() for p in agent._learner.critics.parameters())


def test_every_step_carries_the_final_reward_and_the_last_one_ends(searched):
    _, agent, study = searched
    episode = agent.episodes(study.trials[5])[0]
    assert {reward for _, _, reward, _, _ in episode} == {agent.reward(study.trials[5].value)}
    assert [goes_on for *_, goes_on in episode] == [1.0] * (len(episode) - 1) + [0.0]
    for (_, _, _, following, _), (state, *_) in pairwise(episode):
        assert np.array_equal(following, state)


def test_rewards():
    accuracy = DDPG(toy_problem(objective="accuracy"), float_accuracy=0.92)
    assert accuracy.reward(0.90) == pytest.approx(0.1 * (90 - 92))  # HAQ: 0.1 per percent point
    loss = DDPG(toy_problem(objective="loss"))
    assert loss.reward(-0.2) - loss.reward(-0.4) == pytest.approx(loss.reward(-2.0) - loss.reward(-4.0))
    assert loss.reward(-0.0) > loss.reward(-1e-3)


def test_equal_strides_and_middles_agree():
    agent = DDPG(toy_problem())
    for count in (2, 5, 7):
        middles = [(i + 0.5) / count for i in range(count)]
        assert [min(int(m * count), count - 1) for m in middles] == list(range(count))
    assert len(agent._static) == len(agent.problem.free)


def test_warmup_and_noise_are_scaled_to_the_search():
    problem = toy_problem()
    assert DDPG(problem).warmup == 20
    assert DDPG(problem, max_evaluations=600).decay == pytest.approx(0.99)
    short = DDPG(problem, max_evaluations=50)
    assert short.warmup == 10
    assert short.decay ** (50 - 10) == pytest.approx(0.99 ** (600 - 10))


def test_truncated_normal_stays_inside_and_tightens():
    rng = np.random.default_rng(0)
    wide = [_truncated_normal(1.0, 0.5, rng) for _ in range(500)]
    narrow = [_truncated_normal(1.0, 0.01, rng) for _ in range(500)]
    assert 0.0 <= min(wide) < 0.4 < max(wide) <= 1.0
    assert min(narrow) > 0.9


@pytest.mark.parametrize("kind", [Learner, TwinLearner])
def test_learner_finds_the_action_that_pays_in_each_state(kind):
    """Two one-step tasks in one network: high actions pay in one state, low ones in the other."""
    learner = kind(capacity=1000, hidden=300, seed=0)
    rng = np.random.default_rng(0)
    high, low = np.zeros(10, dtype=np.float32), np.ones(10, dtype=np.float32)
    for _ in range(20):
        up, down = rng.random(2)
        learner.take([(high, up, 4 * up, high, 0.0), (low, down, -4 * down, low, 0.0)], 40, rng)
    assert learner.act(high) > 0.8
    assert learner.act(low) < 0.2
