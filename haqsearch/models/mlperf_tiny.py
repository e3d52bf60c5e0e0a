"""The four reference networks of MLPerf Tiny [Banbury et al. 2021, 2106.07597], as mlcommons/tiny trained them in Keras.

Public weights: mlcommons/tiny, Apache-2.0. Batch norms have Keras's epsilon; convolutions have biases and SAME padding.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from haqsearch.models.same import SameConv2d

_EPSILON = 1e-3  # of Keras's batch norm


class ResNet8(nn.Module):
    """Image classification: (B, 3, 32, 32), raw bytes 0..255 as floats, ten classes of CIFAR-10; 87.19 % published."""

    def __init__(self) -> None:
        super().__init__()
        # inputs, outputs, kernel, stride; the 1x1 convolutions are the shortcuts of the blocks that change shape
        shapes = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (16, 32, 1, 2),
                  (32, 64, 3, 2), (64, 64, 3, 1), (32, 64, 1, 2)]  # fmt: skip
        self.conv = nn.ModuleList(SameConv2d(*shape) for shape in shapes)
        self.bn = nn.ModuleList(nn.BatchNorm2d(c, eps=_EPSILON) for c in (16, 16, 16, 32, 32, 64, 64))
        self.dense = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        conv, bn = self.conv, self.bn
        x = F.relu(bn[0](conv[0](x)))
        x = F.relu(x + bn[2](conv[2](F.relu(bn[1](conv[1](x))))))
        x = F.relu(conv[5](x) + bn[4](conv[4](F.relu(bn[3](conv[3](x))))))  # (B, 32, 16, 16)
        x = F.relu(conv[8](x) + bn[6](conv[7](F.relu(bn[5](conv[6](x))))))  # (B, 64, 8, 8)
        return self.dense(x.mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    """A stem and blocks of depthwise 3x3 and pointwise 1x1 convolutions, each with batch norm and ReLU.

    ``blocks``: (inputs, outputs, stride) each. ``pool``: kernel of the average pool behind them; None: the whole image.
    """

    def __init__(
        self,
        stem: SameConv2d,
        blocks: list[tuple[int, int, int]],
        classes: int,
        pool: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stem, self.pool = stem, pool
        self.stem_bn = nn.BatchNorm2d(stem.out_channels, eps=_EPSILON)
        self.dw = nn.ModuleList(SameConv2d(i, i, 3, stride, groups=i) for i, _, stride in blocks)
        self.dw_bn = nn.ModuleList(nn.BatchNorm2d(i, eps=_EPSILON) for i, _, _ in blocks)
        self.pw = nn.ModuleList(SameConv2d(i, o, 1) for i, o, _ in blocks)
        self.pw_bn = nn.ModuleList(nn.BatchNorm2d(o, eps=_EPSILON) for _, o, _ in blocks)
        self.dense = nn.Linear(blocks[-1][1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        for dw, dw_bn, pw, pw_bn in zip(self.dw, self.dw_bn, self.pw, self.pw_bn, strict=True):
            x = F.relu(pw_bn(pw(F.relu(dw_bn(dw(x))))))
        x = x.mean((2, 3)) if self.pool is None else F.avg_pool2d(x, self.pool).flatten(1)
        return self.dense(x)


class AutoEncoder(nn.Module):
    """Anomaly detection: (B, 640) log-mel energies of five frames, reproduced through eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
        self.fc = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.bn = nn.ModuleList(nn.BatchNorm1d(o, eps=_EPSILON) for o in widths[1:])
        self.out = nn.Linear(128, 640)

    def forward(self, x: Tensor) -> Tensor:
        for fc, bn in zip(self.fc, self.bn, strict=True):
            x = F.relu(bn(fc(x)))
        return self.out(x)


def resnet8() -> nn.Module:
    """ResNet-8 for CIFAR-10, untrained."""
    return ResNet8()


def ds_cnn() -> nn.Module:
    """Keyword spotting: (B, 1, 49, 10) MFCC windows, twelve classes; untrained. The source pools 24 of 25 rows."""
    return DepthwiseSeparable(SameConv2d(1, 64, (10, 4), 2), [(64, 64, 1)] * 4, 12, pool=(24, 5))


def mobilenet_v1_025() -> nn.Module:
    """Visual wake words: MobileNetV1 of width 0.25 [Howard et al. 2017, 1704.04861], (B, 3, 96, 96), two classes; untrained."""
    blocks = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)]
    blocks += [(128, 128, 1)] * 5 + [(128, 256, 2), (256, 256, 1)]
    return DepthwiseSeparable(SameConv2d(3, 8, 3, 2), blocks, 2)


def autoencoder_ad01() -> nn.Module:
    """AutoEncoder, untrained."""
    return AutoEncoder()
