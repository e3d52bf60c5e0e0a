"""Small networks, one for each structure a graph can have, and what the suites make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from haqsearch.data import Splits
from haqsearch.evaluate import Prepared, prepare_network
from haqsearch.graph import Graph, trace
from haqsearch.models.digits_cnn import digits_cnn
from haqsearch.spec import Choice, Format, Policy


class Fork(nn.Module):
    """Two convolutions read one tensor; ``join`` makes one of their results."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], out: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.right = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(out, 3)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(self.join(self.left(x), self.right(x)).mean((2, 3)))


class UnfusedRelu(nn.Module):
    """The convolution's result is read both with and without its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x + self.second(F.relu(x))).mean((2, 3)))


class Shortcut(nn.Module):
    """ResNet's option A: every second pixel, new channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.norm(self.conv(x))
        y = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(y.mean((2, 3)))


class Clamp(nn.Module):
    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


class Tokens(nn.Module):
    """Linear layers on (B, tokens, channels), with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.down(F.relu(self.up(x)))).flatten(1))


class Tuple(nn.Module):
    """Gives its result as a tuple of one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(x),)


class Lstm(nn.Module):
    """A recurrent layer between two that are quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(F.relu(self.first(x)))[0][:, -1])


class Lookup(nn.Module):
    """Eight classes of numbers, looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 5)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table((x.sigmoid() * 8).long()).flatten(1))


class NormedInput(nn.Module):
    """Batch norms that no layer can take up: on the input, and behind a layer whose result is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(2)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x))
        return self.head((x + self.second(x)).mean((2, 3)))


def image(*layers: nn.Module, features: int) -> nn.Module:
    """``layers``, then one linear layer over all their values."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


@dataclass(frozen=True)
class Small:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 6, 6)


C, R = nn.Conv2d, nn.ReLU

INTEGER: dict[str, Small] = {
    "conv_bias": Small(lambda: image(C(2, 4, 3, bias=True), R(), features=64)),
    "conv_no_bias": Small(lambda: image(C(2, 4, 3, bias=False), R(), features=64)),
    "conv_norm": Small(lambda: image(C(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), R(), features=36)),
    "conv_bias_norm": Small(lambda: image(C(2, 4, 3, 2, 1), nn.BatchNorm2d(4), R(), features=36)),
    "norm_not_affine": Small(lambda: image(C(2, 4, 3), nn.BatchNorm2d(4, affine=False), R(), features=64)),
    "same": Small(lambda: image(C(2, 4, 3, padding="same"), R(), features=144)),
    "same_dilated": Small(lambda: image(C(2, 4, 3, padding="same", dilation=2), R(), features=144)),
    "valid": Small(lambda: image(C(2, 4, 3, padding="valid"), R(), features=64)),
    "grouped": Small(lambda: image(C(2, 4, 3, groups=2), R(), C(4, 6, 3, groups=2), R(), features=24)),
    "depthwise": Small(lambda: image(C(2, 6, 1), R(), C(6, 6, 3, padding=1, groups=6), R(), C(6, 4, 1), features=144)),
    "dilated": Small(lambda: image(C(2, 4, 3, dilation=2), R(), features=16)),
    "uneven": Small(lambda: image(C(2, 4, (3, 1), (2, 1), (1, 0)), R(), features=72)),
    "tie": Small(lambda: Fork(torch.add, 4)),
    "concat": Small(lambda: Fork(lambda a, b: torch.cat([a, b], 1), 8)),
    "max_pool": Small(lambda: image(C(2, 4, 3, padding=1), R(), nn.MaxPool2d(2), C(4, 4, 3), features=4)),
    "max_pool_padded": Small(lambda: image(C(2, 4, 3), nn.MaxPool2d(3, 2, 1), features=16)),
    "avg_pool": Small(lambda: image(C(2, 4, 3, padding=1), R(), nn.AvgPool2d(3), C(4, 4, 1), features=16)),
    "avg_pool_padded": Small(lambda: image(C(2, 4, 3, padding=1), nn.AvgPool2d(3, 2, 1), features=36)),
    "adaptive_pool": Small(lambda: image(C(2, 4, 3), R(), nn.AdaptiveAvgPool2d(1), features=4)),
    "relu6": Small(lambda: image(C(2, 4, 3), nn.ReLU6(), features=64)),
    "hardtanh": Small(lambda: image(C(2, 4, 3), nn.Hardtanh(-0.25, 0.5), features=64)),
    "clamp": Small(lambda: image(C(2, 4, 3), Clamp(-0.5, None), features=64)),
    "clamped_input": Small(lambda: image(Clamp(-1.0, 1.0), C(2, 4, 3), features=64)),
    "unfused_relu": Small(UnfusedRelu),
    "perceptron": Small(lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3, bias=False)), (6,)),
    "tokens": Small(Tokens, (4, 6)),
    "shortcut": Small(Shortcut),
    "weight_norm": Small(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, 3)), (6,)
    ),
    "dropout": Small(lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, 3)), (6,)),
    "tuple": Small(Tuple, (6,)),
}
"""Every operation of theirs is computed in integers."""

FLOAT: dict[str, Small] = {
    "sigmoid": Small(lambda: image(C(2, 4, 3), nn.Sigmoid(), C(4, 4, 3), R(), features=16)),
    "softmax_end": Small(lambda: nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), (6,)),
    "transposed": Small(lambda: image(C(2, 4, 3), nn.ConvTranspose2d(4, 2, 3), C(2, 4, 3), features=64)),
    "prelu": Small(lambda: image(C(2, 4, 3), nn.PReLU(4), C(4, 4, 3), features=16)),
    "layer_norm": Small(lambda: nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 3)), (6,)),
    "same_even": Small(lambda: image(C(2, 4, 3), R(), C(4, 4, 2, padding="same"), features=64)),
    "lstm": Small(Lstm, (4, 6)),
    "embedding": Small(Lookup, (4,)),
    "normed_input": Small(NormedInput),
}
"""Part of each stays in float32."""

SMALL = INTEGER | FLOAT


def build(name: str, seed: int = 0) -> nn.Module:
    """The network in eval mode, its batch norms as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SMALL[name].build()
        trained_norms(model)
    return model.eval()


def trained_norms(model: nn.Module) -> None:
    """Give every batch norm statistics and parameters as training would."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.5)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.3)


def samples(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """``count`` inputs of normally distributed values, float32 (count, *shape)."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def inputs(name: str, count: int, seed: int = 0) -> Tensor:
    return samples(SMALL[name].shape, count, seed)


def trained_digits_cnn(seed: int = 0) -> nn.Module:
    """An untrained digits_cnn whose batch norms look trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = digits_cnn()
        trained_norms(model)
    return model.eval()


def prepared(model: nn.Module, calibration: Tensor, name: str = "net") -> Prepared:
    """Network ready to be lowered, calibrated on ``calibration``."""
    part = (calibration, torch.zeros(len(calibration), dtype=torch.int64))
    return prepare_network(model, Splits(part, part, part, part), name)


@cache
def traced(name: str) -> Graph:
    """The network as traced, not prepared."""
    return trace(build(name), inputs(name, 1), name)


@cache
def small(name: str) -> Prepared:
    """The network ready to be lowered."""
    return prepared(build(name), inputs(name, 64, 1), name)


def random_policy(ready: Prepared, seed: int, low: int = 2, high: int = 8) -> Policy:
    """Every width drawn from [low, high]; ties are kept, layers that stay in float do."""
    generator = torch.Generator().manual_seed(seed)

    def width() -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    policy = Policy.uniform(ready.spec, Choice.parse("w8a8"))
    for names in ready.spec.ties.values():
        activation = Format("uint", width())
        for name in names:
            policy = policy.replace(name, Format("int", width()), activation)
    return policy.check(ready.spec)
