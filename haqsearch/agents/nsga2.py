"""NSGA-II, Optuna's own (Deb et al., IEEE Transactions on Evolutionary Computation 2002); of one objective too."""

from __future__ import annotations

from optuna.samplers import NSGAIISampler

from haqsearch.agents.nsga3 import NSGA3


class NSGA2(NSGA3):
    """As ``NSGA3``, but of the last front that survives the least crowded do. With one objective: the best do."""

    def _sampler(self, seed: int) -> NSGAIISampler:
        return NSGAIISampler(population_size=self._size, swapping_prob=self.swap, seed=seed)
