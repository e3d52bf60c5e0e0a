"""TD3 (Fujimoto et al., ICML 2018) in HAQ's episodes: DDPG that does not believe its critic's mistakes."""

from __future__ import annotations

from haqsearch.agents.actor_critic import Learner
from haqsearch.agents.ddpg import DDPG


class TwinLearner(Learner):
    """TD3's three changes: two critics, noise on the actions of targets, an actor that follows at half the pace.

    TD3's noise is 0.2 cut at 0.5 for actions in [-1, 1]; these are in [0, 1].
    """

    CRITICS, SMOOTHING, DELAY = 2, 0.1, 2


class TD3(DDPG):
    """Walks over the layers as ``DDPG`` does, with its options.

    In searches of 100 evaluations, on sums of sensitivities and on ResNet-20, neither was reliably the better one.
    """

    learner = TwinLearner
