"""ResNet-20/32/44/56 for CIFAR-10 [He et al. 2016, 1512.03385, section 4.2], with parameter-free shortcuts (option A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut takes every second pixel and pads the new channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(y + x)


class ResNetCifar(nn.Module):
    """Input (B, 3, 32, 32), ten classes; ``depth`` = 6 n + 2. State dict as akamaster/pytorch_resnet_cifar10's."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2, not {depth}")
        blocks = depth // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *[BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet20() -> nn.Module:
    """ResNet-20, untrained."""
    return ResNetCifar(20)


def resnet32() -> nn.Module:
    """ResNet-32, untrained."""
    return ResNetCifar(32)


def resnet44() -> nn.Module:
    """ResNet-44, untrained."""
    return ResNetCifar(44)


def resnet56() -> nn.Module:
    """ResNet-56, untrained."""
    return ResNetCifar(56)
