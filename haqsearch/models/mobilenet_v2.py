"""MobileNetV2 [Sandler et al. 2018, 1801.04381, table 2] as it is deployed: batch norms folded into the convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Expansion, outputs, repeats and first stride of each stage.
_STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class InvertedResidual(nn.Module):
    """Expand 1x1 (not where ``expansion`` is 1), depthwise 3x3, project 1x1 without activation; an add where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion != 1 else None
        self.dw = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.dw(y)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Input (B, 3, 224, 224), normalised as ImageNet's; 1000 classes, width 1.0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        blocks, channels = [], 32
        for expansion, outputs, repeats, first in _STAGES:
            for stride in [first] + [1] * (repeats - 1):
                blocks.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.head(self.blocks(F.relu6(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2-1.0 at 224, untrained. Public weights, folded: torchvision's (BSD-3-Clause), int8 in tflite-micro."""
    return MobileNetV2()
