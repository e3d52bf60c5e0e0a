"""Tree-structured Parzen estimator, Optuna's own (Bergstra et al., NeurIPS 2011), over whole policies at once."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from haqsearch.agents.base import Agent
from haqsearch.spec import Policy


@dataclass(eq=False, repr=False)
class TPE(Agent):
    """Multivariate TPE with the constant liar, so that parallel workers do not crowd one spot.

    startup     >= 1, random policies before the estimator is trusted
    candidates  >= 1, samples of the good density per proposal, the best of which by expected improvement is taken

    In a trade-off the good trials are those of the first fronts, weighted by the hypervolume that they add (Ozaki et al.,
    JAIR 2022).
    """

    startup: int = 10
    candidates: int = 24

    several_objectives = True

    def propose(self, study: Study, trial: FrozenTrial) -> Policy:
        rng = self.rng(trial)
        # A new sampler per trial: its random state is then the trial's, and a resumed search proposes the same.
        sampler = TPESampler(
            seed=int(rng.integers(2**31)),
            multivariate=True,
            constant_liar=True,
            n_startup_trials=self.startup,
            n_ei_candidates=self.candidates,
        )
        params = sampler.sample_relative(study, trial, self.problem.distributions)
        return self.problem.policy_of(params) if params else self.drawn(rng)  # nothing: it is still starting up
