"""What actor-critic agents share: the networks, their optimizers and slow copies, replay, one update after an episode.

The sizes and rates are HAQ's (Wang et al., CVPR 2019), the update is DDPG's (Lillicrap et al., ICLR 2016). TD3's three
changes to it (Fujimoto et al., ICML 2018) are constants that a subclass sets: ``CRITICS``, ``SMOOTHING`` and ``DELAY``.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from haqsearch.agents.threads import one_thread

Transition = tuple[np.ndarray, float, float, np.ndarray, float]  # state, action, reward, next state, 1.0 if it goes on


class Learner:
    """Actor and critic (10-300-300-1, Adam 1e-4 and 1e-3), their slow copies (tau 0.01), replay (batch 64), gamma 1."""

    BATCH, TAU, GAMMA, BASELINE_RATE = 64, 0.01, 1.0, 0.5
    CRITICS = 1  # the least of their values is believed
    SMOOTHING = 0.0  # standard deviation of the noise on the actions that targets are taken at, cut at 2.5 times that
    DELAY = 1  # updates of the critics for one of the actor and of the slow copies

    def __init__(self, capacity: int, hidden: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actor = Actor(hidden, generator)
        self.critics = nn.ModuleList(Critic(hidden, generator) for _ in range(self.CRITICS))
        self.slow_actor = deepcopy(self.actor).requires_grad_(False)
        self.slow_critics = deepcopy(self.critics).requires_grad_(False)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), lr=1e-4, fused=True)
        self.critic_adam = torch.optim.Adam(self.critics.parameters(), lr=1e-3, fused=True)
        self.replay: deque[Transition] = deque(maxlen=capacity)
        self.baseline: float | None = None
        self.updates = 0

    def act(self, state: np.ndarray) -> float:
        with torch.no_grad(), one_thread():
            return float(self.actor(torch.from_numpy(state)))

    def take(self, episode: list[Transition], updates: int, rng: np.random.Generator) -> None:
        self.replay.extend(episode)
        if not updates:
            return
        states, actions, rewards, nexts, goes_on = (
            np.array(part, dtype=np.float32) for part in zip(*self.replay, strict=True)
        )
        with one_thread():
            for rows in rng.integers(len(self.replay), size=(updates, self.BATCH)):
                target_reward = self._above_baseline(rewards[rows])
                noise = rng.standard_normal(self.BATCH, np.float32) if self.SMOOTHING else np.zeros(1, np.float32)
                parts = (states[rows], actions[rows], target_reward, nexts[rows], goes_on[rows], noise)
                self._update(*(torch.from_numpy(part) for part in parts))

    def _above_baseline(self, rewards: np.ndarray) -> np.ndarray:
        """Rewards over their moving average (ddpg.py:122-140)."""
        mean = float(rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + self.BASELINE_RATE * (mean - self.baseline)
        return rewards - np.float32(self.baseline)

    def _update(
        self, states: Tensor, actions: Tensor, rewards: Tensor, nexts: Tensor, goes_on: Tensor, noise: Tensor
    ) -> None:
        with torch.no_grad():
            smooth = self.SMOOTHING * noise.clamp(-2.5, 2.5)
            future = self._least(self.slow_critics, nexts, (self.slow_actor(nexts) + smooth).clamp(0.0, 1.0))
            target = rewards + self.GAMMA * goes_on * future
        errors = [(critic(states, actions) - target).square().mean() for critic in self.critics]
        self.critic_adam.zero_grad()
        torch.stack(errors).sum().backward()
        self.critic_adam.step()
        self.updates += 1
        if self.updates % self.DELAY == 0:
            self._improve_actor(states)

    @staticmethod
    def _least(critics: nn.ModuleList, states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([critic(states, actions) for critic in critics]).amin(dim=0)

    def _improve_actor(self, states: Tensor) -> None:
        actor_loss = -self.critics[0](states, self.actor(states)).mean()
        parameters = list(self.actor.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(actor_loss, parameters), strict=True):
            parameter.grad = gradient  # backward() would also compute the critic's gradients, which nobody wants
        self.actor_adam.step()
        with torch.no_grad():
            for slow, fast in ((self.slow_critics, self.critics), (self.slow_actor, self.actor)):
                torch._foreach_lerp_([*slow.parameters()], [*fast.parameters()], self.TAU)


class Actor(nn.Module):
    """State to action in [0, 1]."""

    def __init__(self, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.one, self.two, self.out = (
            _linear(i, o, generator) for i, o in ((10, hidden), (hidden, hidden), (hidden, 1))
        )

    def forward(self, state: Tensor) -> Tensor:  # [..., 10] -> [...]
        return torch.sigmoid(self.out(torch.relu(self.two(torch.relu(self.one(state)))))).squeeze(-1)


class Critic(nn.Module):
    """State and action to the sum of rewards from there on."""

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
