"""AdaRound [Nagel et al. 2020, 2004.10568]: for every weight, whether to round it up or down is learned, layer by layer.

    W_q = s * clamp(floor(W / s) + h(V)),   h(V) = clamp(sigmoid(V) (zeta - gamma) + gamma, 0, 1)          (eq. 22, 23)

V is found by gradient descent on the change of the layer's output plus lambda * sum(1 - |2 h(V) - 1| ** beta), which pushes
every h to 0 or 1 as beta falls from high to low (eq. 24). The scale s stays that of least weight error.

The paper takes the change over samples, batch by batch. It is e C e' with e = W - W_q and C the covariance of the layer's inputs
(their second moment if no bias makes up for the mean), so all samples count in every step here, and none is kept.
``reconstruct`` minimises the same by coordinate descent, moves codes further than to a neighbour, and fits the scale too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from haqsearch.ptq.bias_correct import corrected
from haqsearch.ptq.reconstruct import InputStatistics
from haqsearch.quant import QWeight, quantize_weight
from haqsearch.spec import Format

STEPS = 600
_LEARNING_RATE = 5e-2  # of V, by Adam
_WARM = 0.2  # of the steps go without the regularizer
_BETA = (20.0, 2.0)  # first and last
_LAMBDA = (
    4.0  # of the mean regularizer, against the error relative to nearest rounding's: less leaves weights undecided
)
_GAMMA, _ZETA = -0.1, 1.1  # stretch: h reaches 0 and 1 at finite V


def adaround_weight(
    weight: Tensor,
    format: Format,
    statistics: InputStatistics,
    where: str = "weight",
    has_bias: bool = True,
    steps: int = STEPS,
) -> QWeight:
    """Integer weights by learned rounding, with the bias correction that goes with them if there is a bias.

    ``weight`` (N, ...), ``statistics`` of the layer's inputs. Every output channel is at least as good, on those statistics, as
    with nearest rounding at the same scale. Raises DataError as ``quantize_weight`` does.
    """
    nearest = quantize_weight(weight, format, where)
    if format.is_decoded:  # codes that are no neighbours: nearest
        return corrected(weight, nearest, statistics.mean) if has_bias else nearest
    groups, size, _ = statistics.covariance.shape
    moments = statistics.covariance
    if not has_bias:
        moments = moments + statistics.mean[:, :, None] * statistics.mean[:, None, :]
    rows = weight.detach().double().reshape(groups, -1, size)  # (G, N / G, K)
    scale = nearest.scale.double().reshape(groups, -1, 1)
    first = nearest.codes.double().reshape(rows.shape)
    learned = _learned(rows / scale, scale, moments, format, steps)
    better = _error(rows, learned, scale, moments) < _error(rows, first, scale, moments)
    codes = torch.where(better[..., None], learned, first).reshape(weight.shape).to(torch.int8)
    rounded = QWeight(format, codes, nearest.scale)
    return corrected(weight, rounded, statistics.mean) if has_bias else rounded


def _error(rows: Tensor, codes: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """Mean squared change (G, N / G) of each output channel."""
    change = rows - codes * scale
    return ((change @ moments) * change).sum(2)


def _learned(wanted: Tensor, scale: Tensor, moments: Tensor, format: Format, steps: int) -> Tensor:
    """Codes (G, N / G, K); ``wanted`` is the weights in steps of their ``scale`` (G, N / G, 1)."""
    down = wanted.floor()
    part = (wanted - down).clamp(1e-3, 1 - 1e-3)
    start = torch.logit((part - _GAMMA) / (_ZETA - _GAMMA))  # h(V) is the weight's own fraction: nothing rounded yet
    usual = _error(wanted * scale, wanted.round(), scale, moments).sum().clamp(min=torch.finfo(torch.float32).tiny)
    floor, target, size, gram = (t.float() for t in (down, wanted, scale, moments / usual))
    variable = start.float().requires_grad_()
    optimizer = torch.optim.Adam([variable], _LEARNING_RATE)
    with torch.enable_grad():
        for step in range(steps):
            up = _rectified(variable)
            change = ((floor + up).clamp(format.code_min, format.code_max) - target) * size
            loss = ((change @ gram) * change).sum()
            progress = (step / steps - _WARM) / (1 - _WARM)
            if progress >= 0:
                beta = _BETA[1] + 0.5 * (_BETA[0] - _BETA[1]) * (1 + torch.cos(torch.tensor(torch.pi * progress)))
                loss = loss + _LAMBDA * (1 - (2 * up - 1).abs() ** beta).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    up = (_rectified(variable.detach()) >= 0.5).double()
    return (down + up).clamp(format.code_min, format.code_max)


def _rectified(variable: Tensor) -> Tensor:
    return (torch.sigmoid(variable) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
