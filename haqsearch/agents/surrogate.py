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
    """

    def __init__(self, rises: Sequence[Floats], keys: Keys, losses: Floats) -> None:
        self.keys, self.unit = keys, float(losses.min()) or 1.0
        self._rises = rises
        at = self._at(keys)
        self._weight = float(np.median(at.sum(1))) or 1.0  # rises are brought to the scale of the losses
        self._y = losses / self.unit
        self.priors = max(
            (_Priors(f, r, length) for f in _FACTORS for r in _RESIDUALS for length in _LENGTHS), key=self._likelihood
        )
        self._factor = np.linalg.cholesky(self._matrix(self.priors))
        self._solved = self._solve(self._y - 1.0)

    def predict(self, keys: Keys) -> tuple[Floats, Floats]:
        """Posterior mean and standard deviation of the loss of each of ``keys`` [policies, variables]."""
        cross = self._kernel(keys, self.keys, self.priors)
        mean = 1.0 + cross @ self._solved
        half = np.linalg.solve(self._factor, cross.T)
        variance = self._diagonal(keys, self.priors) - (half**2).sum(0)
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
        solved, at = self._solved, self._at(self.keys)
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

    def _at(self, keys: Keys) -> Floats:
        """[policies, variables]: the predicted rises that the policies ask for, on the losses' scale once that is known."""
        columns = [np.asarray(rises)[keys[:, v]] for v, rises in enumerate(self._rises)]
        return np.stack(columns, 1) / getattr(self, "_weight", 1.0)

    def _kernel(self, one: Keys, other: Keys, priors: _Priors) -> Floats:
        a, b = self._at(one), self._at(other)
        same = np.zeros((len(one), len(other)))
        distance = np.zeros((len(one), len(other)))
        for v in range(one.shape[1]):
            apart = np.abs(one[:, v, None] - other[None, :, v])
            same += (apart == 0) * np.outer(a[:, v], b[:, v])
            distance += apart
        total = _LEVEL**2 + _SCALE**2 * np.outer(a.sum(1), b.sum(1))
        total += priors.factor**2 * (a @ b.T) + (priors.factor / 2) ** 2 * same
        return total + priors.residual**2 * np.exp(-distance / priors.length)

    def _diagonal(self, keys: Keys, priors: _Priors) -> Floats:
        a = self._at(keys)
        squares = (a**2).sum(1)
        linear = _LEVEL**2 + _SCALE**2 * a.sum(1) ** 2
        return linear + 1.25 * priors.factor**2 * squares + priors.residual**2

    def _matrix(self, priors: _Priors) -> Floats:
        return self._kernel(self.keys, self.keys, priors) + _NOISE**2 * np.eye(len(self.keys))

    def _likelihood(self, priors: _Priors) -> float:
        factor = np.linalg.cholesky(self._matrix(priors))
        half = np.linalg.solve(factor, self._y - 1.0)
        return float(-0.5 * half @ half - np.log(np.diag(factor)).sum())

    def _solve(self, right: Floats) -> Floats:
        return np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, right))
