"""How alike two scores rank the same policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RESAMPLES = 1000
LEAST = 3  # policies; fewer have no ranks to speak of


def rank_agreement(x: Sequence[float], y: Sequence[float], seed: int = 0) -> dict[str, Any] | None:
    """Spearman's rho with its 95 % bootstrap interval over the policies, and Kendall's tau; None for fewer than LEAST.

    A score that is the same for all policies ranks none: 0.
    """
    from scipy.stats import kendalltau

    if len(x) < LEAST:
        return None
    low, high = interval([spearman(*pair) for pair in resamples([x, y], seed)])
    tau = kendalltau(x, y).statistic
    return {
        "count": len(x),
        "spearman": round(spearman(x, y), 4),
        "interval": [low, high],
        "kendall": round(float(tau), 4) if tau == tau else 0.0,
    }


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho: Pearson's of the ranks, ties at their mean; 0 where all are tied."""
    import numpy as np
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def resamples(columns: Sequence[Sequence[float]], seed: int) -> Any:
    """RESAMPLES times the same rows of every column, drawn with replacement."""
    import numpy as np

    rng = np.random.default_rng(seed)
    table = np.asarray(columns, dtype=float)
    for _ in range(RESAMPLES):
        yield table[:, rng.integers(table.shape[1], size=table.shape[1])]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 %."""
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)
