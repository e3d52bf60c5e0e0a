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
    low, high = interval(spearman(*resampled([x, y], seed)))
    tau = kendalltau(x, y).statistic
    return {
        "count": len(x),
        "spearman": round(float(spearman(x, y)), 4),
        "interval": [low, high],
        "kendall": round(float(tau), 4) if tau == tau else 0.0,
    }


def spearman(x: Any, y: Any) -> Any:
    """Spearman's rho along the last axis: Pearson's of the ranks, ties at their mean; 0 where all are tied."""
    import numpy as np
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=-1) for values in (x, y))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    norm = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(norm > 0, (a * b).sum(-1) / np.where(norm > 0, norm, 1.0), 0.0)


def resampled(columns: Sequence[Sequence[float]], seed: int) -> Any:
    """Every column with its rows drawn anew, with replacement, the same of all columns: [column, RESAMPLES, row]."""
    import numpy as np

    table = np.asarray(columns, dtype=float)
    rows = table.shape[1]
    return table[:, np.random.default_rng(seed).integers(rows, size=(RESAMPLES, rows))]


def interval(values: Any) -> tuple[float, float]:
    """The middle 95 %."""
    import numpy as np

    low, high = np.quantile(values, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)
