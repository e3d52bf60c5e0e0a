"""A small network with every structure a mixed-precision search meets: depthwise-separable block, residual, stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, and ReLU unless ``relu`` is False."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if relu:
            self.relu = nn.ReLU()


class Separable(nn.Module):
    """Inverted residual: expand 1x1, depthwise 3x3, project 1x1; a residual add where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DigitsCNN(nn.Module):
    """Input (B, 1, 8, 8), ten classes, eleven quantizable layers, about 23 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, 3)
        self.block1 = Separable(16, 16, 1)
        self.block2 = Separable(16, 32, 2)
        self.conv1 = ConvNorm(32, 32, 3)
        self.conv2 = ConvNorm(32, 32, 3, relu=False)
        self.down = ConvNorm(32, 48, 3, 2)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))  # (B, 32, 4, 4)
        x = F.relu(x + self.conv2(self.conv1(x)))
        return self.classifier(self.down(x).mean((2, 3)))


def digits_cnn() -> nn.Module:
    """An untrained DigitsCNN, initialised from torch's current random state."""
    return DigitsCNN()
