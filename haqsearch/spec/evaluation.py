"""What a policy turned out to be worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import exp, log
from typing import Any


@dataclass(frozen=True)
class Objective:
    """A quantity the agents improve; ``sign`` is +1 where more is better. ``score`` is always to be made large.

    ``ideal`` is the score of a perfect network, which none exceeds.
    """

    name: str
    title: str
    sign: int
    ideal: float = 0.0

    def score(self, evaluation: Evaluation) -> float:
        return self.sign * float(getattr(evaluation, self.name))

    def even(self, score: float) -> float:
        """A score on a scale for models and rewards: of a loss or divergence -log, so that halving it is always worth the same.

        As it is, one broken 2-bit policy, whose loss is a hundred times the others', would make all good ones alike. What
        is below 1e-6 nats counts as 1e-6. Accuracies stay as they are.
        """
        return score if self.sign > 0 else -log(max(-score, 1e-6))

    def from_even(self, value: float) -> float:
        """The score that is at ``value`` on the even scale; to the last few bits, and no better than 1e-6 of a loss."""
        return value if self.sign > 0 else -exp(-value)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("accuracy", "share of samples classified right, in [0, 1]", +1, 1.0),
        Objective("loss", "mean cross-entropy to the labels, nats", -1),
        Objective("kl", "mean KL divergence of the logits from the float model's, nats", -1),
        Objective("logit_mse", "mean squared error of the centred logits against the float model's", -1),
    )
}


@dataclass(frozen=True)
class Evaluation:
    """One policy scored at one fidelity. A failure is a value: ``error`` is set and the numbers are None, never NaN.

    accuracy in [0, 1]; loss and kl in nats; logit_mse in squared logits; metrics in base units (``spec.METRICS``);
    violation as ``spec.violation``.
    """

    accuracy: float | None
    loss: float | None
    kl: float | None
    samples: int
    seconds: float
    fidelity: str = "ptq"
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    violation: float = 0.0
    error: str = ""
    logit_mse: float | None = None

    @property
    def scores(self) -> dict[str, float | None]:
        """Every quantity that a search can improve, by its objective's name."""
        return {name: getattr(self, name) for name in OBJECTIVES}

    @property
    def ok(self) -> bool:
        return not self.error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        return cls(**data)

    @classmethod
    def failed(cls, error: str, seconds: float = 0.0, fidelity: str = "ptq") -> Evaluation:
        return cls(None, None, None, 0, seconds, fidelity, error=error)
