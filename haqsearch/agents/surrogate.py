"""What the funnel has learned: a Gaussian process whose mean is the sensitivity table and whose residual is what it lacks.

The loss of a policy is modelled as

    y(x) = level + (scale + factor[v] + own[v, x_v]) * s[v, x_v] summed over the variables v + residual(x)

with Gaussian priors on all of them: ``scale`` for what the table gets wrong about all of them together (losses grow faster than
their sum when many layers are narrow), ``factor`` for a variable more sensitive than it looked, ``own`` for one of its
widths; the residual is smooth over policies that differ in few bits, and holds what is no sum at all. All of it is one kernel,
so mean and uncertainty come from one Cholesky factor (Rasmussen & Williams 2006, algorithm 2.1), and the additive part of
the posterior mean can be handed to an exact solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, exp, pi, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.intp]

_LEVEL, _SCALE = 1.0, 2.0  # prior standard deviations, in units of the best loss seen: wide
_NOISE = 0.01  # of a measurement: losses on a split are exact, this keeps the matrix well conditioned
_FACTORS = (0.1, 0.3, 1.0)
_RESIDUALS = (0.02, 0.06, 0.2, 0.6)
_LENGTHS = (8.0, 24.0)


@dataclass(frozen=True)
class _Priors:
    """Standard deviations of ``factor`` (``own`` has half of it) and of the residual, and the residual's length in bits."""

    factor: float
    residual: float
    length: float


class Surrogate:
    """Fitted to ``losses`` [policies] of ``keys`` [policies, variables] by the marginal likelihood over a grid of priors.

    rises   per variable the predicted rise at each candidate
    doubt   nats of likelihood, >= 0, by which priors may be less likely than the likeliest and still be believed; of those
            that are, the surrogate takes the widest about what each variable adds. A search measures mostly policies that
            the surrogate itself called good: there it is right, and so looks surer than it may be of all others.
    """

    def __init__(self, rises: Sequence[Floats], keys: Keys, losses: Floats, doubt: float = 0.0) -> None:
        self.keys, self.unit = keys, float(losses.min()) or 1.0
        self._rises = [np.asarray(rise, dtype=np.float64) for rise in rises]
        self._weight = (
            float(np.median(_taken(self._rises, keys).sum(1))) or 1.0
        )  # rises are brought to the losses' scale
        self._y = losses / self.unit
        self._own = self._coded(keys)
        parts = self._parts(self._own, self._own)
        tried = [_Priors(f, r, length) for f in _FACTORS for r in _RESIDUALS for length in _LENGTHS]
        likelihood = {priors: self._likelihood(parts.kernel(priors)) for priors in tried}
        believed = [priors for priors in tried if likelihood[priors] >= max(likelihood.values()) - doubt]
        self.priors = max(believed, key=lambda priors: (priors.factor, likelihood[priors]))
        self._factor = np.linalg.cholesky(self._noisy(parts.kernel(self.priors)))
        self._solved = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, self._y - 1.0))

    def predict(self, keys: Keys) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation of the loss of each of ``keys`` [policies, variables]."""
        coded = self._coded(keys)
        cross = self._parts(coded, self._own).kernel(self.priors)
        mean = 1.0 + cross @ self._solved
        half = np.linalg.solve(self._factor, cross.T)
        variance = self._diagonal(coded, self.priors) - (half**2).sum(0)
        return self.unit * mean, self.unit * np.sqrt(np.maximum(variance, 1e-12))

    def improvement(self, keys: Keys, best: float) -> Floats:
        """Expected improvement of each of ``keys`` on the loss ``best`` (Jones et al., 1998, equation 15)."""
        mean, deviation = self.predict(keys)
        z = (best - mean) / deviation
        cumulative = np.array([0.5 * (1 + erf(v / sqrt(2))) for v in z])
        density = np.array([exp(-0.5 * v * v) / sqrt(2 * pi) for v in z])
        return (best - mean) * cumulative + deviation * density

    def additive(self) -> list[Floats]:
        """Per variable the posterior mean of what each candidate adds to the loss: what an exact solver can add up."""
        found = []
        solved, at = self._solved, self._own.rises
        scale = _SCALE**2 * float(solved @ at.sum(1))
        for v, rises in enumerate(self._rises):
            s = np.asarray(rises) / self._weight
            factor = self.priors.factor**2 * float(solved @ at[:, v])
            own = np.array(
                [
                    (self.priors.factor / 2) ** 2 * s[c] * float(solved[self.keys[:, v] == c].sum())
                    for c in range(len(s))
                ]
            )
            found.append(self.unit * s * (scale + factor + own))
        return found

    def _coded(self, keys: Keys) -> _Coded:
        """``keys`` as the kernel's terms need them, so that each is one product of matrices."""
        rises = _taken(self._rises, keys) / self._weight
        chosen = [keys[:, v, None] == np.arange(len(rise)) for v, rise in enumerate(self._rises)]
        above = [keys[:, v, None] > np.arange(len(rise) - 1) for v, rise in enumerate(self._rises)]
        each = np.concatenate([rises[:, v, None] * one for v, one in enumerate(chosen)], axis=1)
        return _Coded(rises, each, np.concatenate(above, axis=1).astype(np.float64))

    @staticmethod
    def _parts(one: _Coded, other: _Coded) -> _Parts:
        common = _LEVEL**2 + _SCALE**2 * np.outer(one.rises.sum(1), other.rises.sum(1))
        factor = one.rises @ other.rises.T + 0.25 * (one.each @ other.each.T)
        # |a - b| is the number of steps that one of the two has passed and the other has not.
        passed = one.above.sum(1)[:, None] + other.above.sum(1)[None, :] - 2 * (one.above @ other.above.T)
        return _Parts(common, factor, passed)

    @staticmethod
    def _diagonal(coded: _Coded, priors: _Priors) -> Floats:
        linear = _LEVEL**2 + _SCALE**2 * coded.rises.sum(1) ** 2
        return linear + 1.25 * priors.factor**2 * (coded.rises**2).sum(1) + priors.residual**2

    @staticmethod
    def _noisy(kernel: Floats) -> Floats:
        return kernel + _NOISE**2 * np.eye(len(kernel))

    def _likelihood(self, kernel: Floats) -> float:
        factor = np.linalg.cholesky(self._noisy(kernel))
        half = np.linalg.solve(factor, self._y - 1.0)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())


@dataclass(frozen=True)
class _Coded:
    """Policies as rows: the rises they ask for, the same spread over the candidates, and the steps of bits they are above."""

    rises: Floats
    each: Floats
    above: Floats


@dataclass(frozen=True)
class _Parts:
    """Terms of a kernel matrix that do not depend on the priors."""

    common: Floats
    factor: Floats
    distance: Floats

    def kernel(self, priors: _Priors) -> Floats:
        residual = priors.residual**2 * np.exp(-self.distance / priors.length)
        return self.common + priors.factor**2 * self.factor + residual


def _taken(rises: Sequence[Floats], keys: Keys) -> Floats:
    """[policies, variables]: the rise of each candidate that the policies take."""
    return np.stack([rise[keys[:, v]] for v, rise in enumerate(rises)], 1)
