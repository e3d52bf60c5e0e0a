"""HAQ's agent: DDPG that walks over the layers and chooses bits (Wang et al., CVPR 2019; Lillicrap et al., ICLR 2016).

One episode is one policy; one step is one free variable, in network order, weight before activation, so a layer takes
two steps and layers that share an activation take one for it. The state is HAQ's: eight static features of the layer,
the previous action in bits over the widest, and a flag (1 weight, 0 activation). The action in [0, 1] is cut into
equal strides, one per candidate. The reward of the finished policy stands on every step.

What the published code does and this does not (each has a test): replay holds the policy that was *evaluated*, not
the one wished for before the budget cut it, and the previous-action feature of stored states agrees with it; states
are built anew for every episode; the flag means one thing; pinned layers are no steps, so nothing can move them and
no sentinel is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import log

import numpy as np
import torch
from optuna.study import Study
from optuna.trial import FrozenTrial
from torch import Tensor, nn

from haqsearch.agents.base import Agent
from haqsearch.agents.problem import Problem
from haqsearch.spec import Policy

HAQ_EPISODES = 600  # the length HAQ's noise schedule was made for

Transition = tuple[np.ndarray, float, float, np.ndarray, float]  # state, action, reward, next state, 1.0 if it goes on


class DDPG(Agent):
    """HAQ's agent with HAQ's constants as defaults.

    float_accuracy  accuracy of the float model in [0, 1]. With objective ``accuracy`` the reward is HAQ's: 0.1 *
                    (accuracy - float_accuracy) in percent; 0.0 (unknown) shifts it by a constant, which the moving
                    baseline takes away. With ``loss`` and ``kl`` the reward is -log: halving the loss is worth the
                    same everywhere, and its scale is a constant for the baseline too. (Standardising would let one
                    broken 2-bit policy, whose loss is a hundred times the others', press all good ones into the same
                    reward.)
    warmup          >= 0, random episodes before the actor is asked; at most a fifth of ``max_evaluations``
    hidden          units of both hidden layers
    noise, decay    exploration: truncated normal on [0, 1], sigma = noise * decay^(episode - warmup). In a search
                    shorter than HAQ's 600 episodes the decay is quickened so that it ends where HAQ's ends.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int = 0,
        max_evaluations: int | None = None,
        float_accuracy: float = 0.0,
        warmup: int = 20,
        hidden: int = 300,
        noise: float = 0.5,
        decay: float = 0.99,
    ) -> None:
        super().__init__(problem, seed, max_evaluations)
        length = min(max_evaluations or HAQ_EPISODES, HAQ_EPISODES)
        self.float_accuracy = float_accuracy
        self.warmup = min(warmup, length // 5)
        self.noise = noise
        self.decay = decay ** ((HAQ_EPISODES - self.warmup) / max(length - self.warmup, 1))
        self.hidden = hidden
        self._static = problem.layer_features.astype(np.float32)  # [steps, 8]
        self._flag = np.array([v.role == "weight" for v in problem.free], dtype=np.float32)
        self._bits = [np.array([f.bits for f in v.candidates], dtype=np.float32) for v in problem.free]
        self._widest = max((bits.max() for bits in self._bits), default=1.0)
        self._forget()

    def _forget(self) -> None:
        self._learner = _Learner(
            capacity=128 * len(self.problem.space.model.quantizable), hidden=self.hidden, seed=self.seed
        )
        self._seen: list[tuple] = []  # the trials learned from, in order

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        self.learn(study)
        rng = self.rng(trial)
        episode = len(self._seen)
        sigma = self.noise * self.decay ** (episode - self.warmup)
        indices: list[int] = []
        for step in range(len(self.problem.free)):
            if episode < self.warmup:
                action = rng.random()
            else:
                action = _truncated_normal(self._learner.act(self._state(step, indices)), sigma, rng)
            count = len(self._bits[step])
            indices.append(min(int(action * count), count - 1))
        names = [variable.name for variable in self.problem.free]
        return self.problem.policy_of(dict(zip(names, indices, strict=True)))

    def learn(self, study: Study) -> None:
        """Take in the completed trials not seen yet; after a restart, or for another study, all of them in order."""
        completed = self.completed(study)
        if self._seen != [_identity(t) for t in completed[: len(self._seen)]]:
            self._forget()
        for trial in completed[len(self._seen) :]:
            self._seen.append(_identity(trial))
            updates = len(self.problem.free) if len(self._seen) > self.warmup else 0
            rng = np.random.default_rng([self.seed, trial.number, 2])
            self._learner.take(self.transitions(trial), updates, rng)

    def reward(self, score: float) -> float:
        """HAQ's reward of a trial's score; see the class for loss and kl."""
        if self.problem.objective.name == "accuracy":
            return 10.0 * (score - self.float_accuracy)  # 0.1 per percent point
        return -log(max(-score, 1e-6))

    def transitions(self, trial: FrozenTrial) -> list[Transition]:
        """One episode as evaluated, from a completed trial's parameters; actions are the middles of their strides."""
        indices = [int(trial.params[variable.name]) for variable in self.problem.free]
        assert trial.value is not None, "only completed trials are learned from"
        reward = self.reward(trial.value)
        states = [self._state(step, indices) for step in range(len(indices))]
        last = len(indices) - 1
        return [
            (states[i], (indices[i] + 0.5) / len(self._bits[i]), reward, states[min(i + 1, last)], float(i < last))
            for i in range(len(indices))
        ]

    def _state(self, step: int, indices: list[int]) -> np.ndarray:
        """HAQ's ten numbers before ``step``, given the candidates chosen so far; the first previous action is 1."""
        previous = self._bits[step - 1][indices[step - 1]] / self._widest if step else 1.0
        return np.append(self._static[step], [previous, self._flag[step]]).astype(np.float32)


def _identity(trial: FrozenTrial) -> tuple:
    return trial.number, trial.value, tuple(trial.params.items())


class _Learner:
    """Actor and critic (10-300-300-1, Adam 1e-4 and 1e-3), their slow copies (tau 0.01), replay (batch 64), gamma 1."""

    BATCH, TAU, GAMMA, BASELINE_RATE = 64, 0.01, 1.0, 0.5

    def __init__(self, capacity: int, hidden: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actor = _Actor(hidden, generator)
        self.critic = _Critic(hidden, generator)
        self.slow_actor = deepcopy(self.actor).requires_grad_(False)
        self.slow_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-4, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=1e-3, fused=True)
        self.replay: deque[Transition] = deque(maxlen=capacity)
        self.baseline: float | None = None

    def act(self, state: np.ndarray) -> float:
        with torch.no_grad(), _one_thread():
            return float(self.actor(torch.from_numpy(state)))

    def take(self, episode: list[Transition], updates: int, rng: np.random.Generator) -> None:
        self.replay.extend(episode)
        if not updates:
            return
        states, actions, rewards, nexts, goes_on = (
            np.array(part, dtype=np.float32) for part in zip(*self.replay, strict=True)
        )
        with _one_thread():
            for rows in rng.integers(len(self.replay), size=(updates, self.BATCH)):
                target_reward = self._above_baseline(rewards[rows])
                parts = (states[rows], actions[rows], target_reward, nexts[rows], goes_on[rows])
                self._update(*(torch.from_numpy(part) for part in parts))

    def _above_baseline(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards over their moving average (ddpg.py:122-140)."""
        mean = float(rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + self.BASELINE_RATE * (mean - self.baseline)
        return rewards - np.float32(self.baseline)

    def _update(self, states: Tensor, actions: Tensor, rewards: Tensor, nexts: Tensor, goes_on: Tensor) -> None:
        with torch.no_grad():
            future = self.slow_critic(nexts, self.slow_actor(nexts))
            target = rewards + self.GAMMA * goes_on * future
        critic_loss = (self.critic(states, actions) - target).square().mean()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()
        actor_loss = -self.critic(states, self.actor(states)).mean()
        parameters = list(self.actor.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(actor_loss, parameters), strict=True):
            parameter.grad = gradient  # backward() would also compute the critic's gradients, which nobody wants
        self.actor_adam.step()
        with torch.no_grad():
            for slow, fast in ((self.slow_critic, self.critic), (self.slow_actor, self.actor)):
                torch._foreach_lerp_([*slow.parameters()], [*fast.parameters()], self.TAU)


class _Actor(nn.Module):
    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.one, self.two, self.out = (
            _linear(i, o, generator) for i, o in ((10, hidden), (hidden, hidden), (hidden, 1))
        )

    def forward(self, state: Tensor) -> Tensor:  # [..., 10] -> [...]
        return torch.sigmoid(self.out(torch.relu(self.two(torch.relu(self.one(state)))))).squeeze(-1)


class _Critic(nn.Module):
    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        shapes = ((10, hidden), (1, hidden), (hidden, hidden), (hidden, 1))
        self.state, self.action, self.two, self.out = (_linear(i, o, generator) for i, o in shapes)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:  # [..., 10], [...] -> [...]
        one = torch.relu(self.state(state) + self.action(action.unsqueeze(-1)))
        return self.out(torch.relu(self.two(one))).squeeze(-1)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """nn.Linear with its usual initial values, drawn from ``generator``: the global random state is the user's."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def _truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """Normal on [0, 1] by rejection; with the mean inside and sigma <= 1 at least a third is accepted."""
    while True:
        value = float(rng.normal(mean, sigma))
        if 0.0 <= value <= 1.0:
            return value


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers of 300 units lose more to waking threads than they win, and one thread adds up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
