"""HAQ's agent: DDPG that walks over the layers and chooses bits (Wang et al., CVPR 2019; Lillicrap et al., ICLR 2016).

One episode is one policy; one step is one free variable, in network order, weight before activation, so a layer takes
two steps and layers that share an activation take one for it. The state is HAQ's: eight static features of the layer,
the previous action in bits over the widest, and a flag (1 weight, 0 activation). The action in [0, 1] is cut into
equal strides, one per candidate. The reward of the finished policy stands on every step.

What the published code does and this does not (each has a test): replay holds the policy that was *evaluated*, and
the previous-action feature of stored states agrees with it; states are built anew for every episode; the flag means
one thing; pinned layers are no steps, so nothing can move them and no sentinel is needed.

A policy that was wished for and cut by the budget is stored too, as an episode of its own with the same reward: asking
for it does lead there, the cut being part of the environment. Without these the critic never hears of the actions that
the actor really takes, and its fancies about them stand uncorrected: of five searches of k-means bits one ended with
proposals at 13 % accuracy; with them all five ended above 92 %.
"""

from __future__ import annotations

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.actor_critic import Learner, Transition
from haqsearch.agents.base import Agent
from haqsearch.agents.problem import Problem
from haqsearch.spec import Choice, Policy

HAQ_EPISODES = 600  # the length HAQ's noise schedule was made for


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

    learner: type[Learner] = Learner

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
        self._learner = self.learner(
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
            episode = [step for walk in self.episodes(trial) for step in walk]
            self._learner.take(episode, updates, rng)

    def reward(self, score: float) -> float:
        """HAQ's reward of a trial's score; see the class for loss and kl."""
        if self.problem.objective.name == "accuracy":
            return 10.0 * (score - self.float_accuracy)  # 0.1 per percent point
        return self.problem.objective.even(score)

    def episodes(self, trial: FrozenTrial) -> list[list[Transition]]:
        """Of a completed trial: the episode that was evaluated and, where it had been cut, the one wished for."""
        assert trial.value is not None, "only completed trials are learned from"
        reward = self.reward(trial.value)
        names = [variable.name for variable in self.problem.free]
        evaluated = [int(trial.params[name]) for name in names]
        wished = self._wished(trial)
        walks = [evaluated] if wished in (None, evaluated) else [evaluated, wished]
        return [self._episode(indices, reward) for indices in walks]

    def _wished(self, trial: FrozenTrial) -> list[int] | None:
        """Indices of what was proposed; None in a trial that no agent of ours proposed."""
        if "proposal" not in trial.user_attrs:
            return None
        wish = Policy({layer: Choice.parse(text) for layer, text in trial.user_attrs["proposal"].items()})
        params = self.problem.params_of(wish)
        return [params[variable.name] for variable in self.problem.free]

    def _episode(self, indices: list[int], reward: float) -> list[Transition]:
        """Transitions of one walk over the layers; actions are the middles of their strides."""
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


def _truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """Normal on [0, 1] by rejection; with the mean inside and sigma <= 1 at least a third is accepted."""
    while True:
        value = float(rng.normal(mean, sigma))
        if 0.0 <= value <= 1.0:
            return value
