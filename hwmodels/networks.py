"""Networks as shapes, for the published figures that devices are compared with. Layers have torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from haqsearch.spec import LayerSpec, ModelSpec


def conv(name: str, c: int, n: int, k: int, out: int, stride: int = 1, groups: int = 1, **more: Any) -> LayerSpec:
    """A square convolution of ``c`` to ``n`` channels; ``groups == c`` makes it depthwise. It has a predecessor unless
    ``inputs=()`` is given."""
    return LayerSpec(
        name,
        "depthwise_conv2d" if groups == c and groups > 1 else "conv2d",
        (c, out * stride, out * stride),
        (n, c // groups, k, k),
        (n, out, out),
        n * (c // groups) * k * k * out * out,
        groups,
        (stride, stride),
        (k, k),
        **{"inputs": ("previous",), **more},
    )


def linear(name: str, c: int, n: int, **more: Any) -> LayerSpec:
    """A linear layer on one vector."""
    return LayerSpec(name, "linear", (c,), (n, c), (n,), c * n, **{"inputs": ("previous",), **more})


def mobilenet_v1(width: float = 1.0, image: int = 224, classes: int = 1000) -> ModelSpec:
    """MobileNetV1 [Howard et al. 2017, 1704.04861, table 1]."""
    c, out = int(32 * width), image // 2
    layers = [conv("conv0", 3, c, 3, out, 2, inputs=())]
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (n, stride) in enumerate(plan):
        out = -(-out // stride)
        n = int(n * width)
        layers += [conv(f"dw{i}", c, c, 3, out, stride, groups=c), conv(f"pw{i}", c, n, 1, out)]
        c = n
    return ModelSpec("mobilenet_v1", (*layers, linear("fc", c, classes)))


def mobilenet_v2() -> ModelSpec:
    """MobileNetV2-1.0-224 [Sandler et al. 2018, 1801.04381, table 2]; layers l0 to l52 as in HAQ's table."""
    shapes = [(3, 32, 3, 112, 2, 1)]
    c, out = 32, 112
    for expansion, n, repeats, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for repeat in range(repeats):
            stride, hidden = first if repeat == 0 else 1, c * expansion
            if expansion > 1:
                shapes.append((c, hidden, 1, out, 1, 1))
            out //= stride
            shapes += [(hidden, hidden, 3, out, stride, hidden), (hidden, n, 1, out, 1, 1)]
            c = n
    shapes.append((c, 1280, 1, out, 1, 1))
    layers = [conv(f"l{i}", *shape, inputs=("previous",) if i else ()) for i, shape in enumerate(shapes)]
    return ModelSpec("mobilenet_v2", (*layers, linear(f"l{len(layers)}", 1280, 1000)))


def resnet18(image: int = 224) -> ModelSpec:
    """ResNet-18 [He et al. 2015, 1512.03385, table 1]."""
    return ModelSpec("resnet18", tuple(_resnet(image, (2, 2, 2, 2), bottleneck=False)))


def resnet50(image: int = 224) -> ModelSpec:
    """ResNet-50 with the stride in the first 1 x 1 convolution of a block [He et al. 2015, 1512.03385, table 1]."""
    return ModelSpec("resnet50", tuple(_resnet(image, (3, 4, 6, 3), bottleneck=True)))


def _resnet(image: int, blocks: tuple[int, ...], bottleneck: bool) -> Iterator[LayerSpec]:
    out = -(-image // 2)
    yield conv("conv1", 3, 64, 7, out, 2, inputs=())
    c, out = 64, -(-out // 2)
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        n = 4 * width if bottleneck else width
        for block in range(count):
            stride, name = (2 if stage and not block else 1), f"layer{stage + 1}.{block}"
            out = -(-out // stride)
            if bottleneck:
                yield conv(f"{name}.conv1", c, width, 1, out, stride)
                yield conv(f"{name}.conv2", width, width, 3, out)
                yield conv(f"{name}.conv3", width, n, 1, out)
            else:
                yield conv(f"{name}.conv1", c, width, 3, out, stride)
                yield conv(f"{name}.conv2", width, n, 3, out)
            if c != n:
                yield conv(f"{name}.downsample.0", c, n, 1, out, stride)
            c = n
    yield linear("fc", c, 1000)


def vgg16() -> ModelSpec:
    """VGG-16 [Simonyan and Zisserman 2014, 1409.1556, configuration D]."""
    layers: list[LayerSpec] = []
    c, out = 3, 224
    for n, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            name = f"conv{len(layers)}"
            layers.append(conv(name, c, n, 3, out, inputs=("previous",) if layers else ()))
            c = n
        out //= 2
    dense = (linear("fc0", 512 * 7 * 7, 4096), linear("fc1", 4096, 4096), linear("fc2", 4096, 1000))
    return ModelSpec("vgg16", (*layers, *dense))


def resnet8() -> ModelSpec:
    """Image classification of MLPerf Tiny: ResNet-8 on 32 x 32 pixels [Banbury et al. 2021, 2106.07597]."""
    layers = [conv("conv", 3, 16, 3, 32, inputs=())]
    c, out = 16, 32
    for stage, n in enumerate((16, 32, 64)):
        stride = 2 if stage else 1
        out //= stride
        layers += [conv(f"stack{stage}.conv0", c, n, 3, out, stride), conv(f"stack{stage}.conv1", n, n, 3, out)]
        if stage:
            layers.append(conv(f"stack{stage}.shortcut", c, n, 1, out, stride))
        c = n
    return ModelSpec("resnet8", (*layers, linear("fc", 64, 10)))


def ds_cnn() -> ModelSpec:
    """Keyword spotting of MLPerf Tiny: a depthwise-separable network on 49 x 10 features [2106.07597]."""
    first = LayerSpec("conv", "conv2d", (1, 49, 10), (64, 1, 10, 4), (64, 25, 5), 25 * 5 * 64 * 40, 1, (2, 2), (10, 4))
    layers = [first]
    for i in range(4):
        layers += [
            LayerSpec(f"dw{i}", "depthwise_conv2d", (64, 25, 5), (64, 1, 3, 3), (64, 25, 5), 25 * 5 * 64 * 9, 64,
                      kernel=(3, 3), inputs=("previous",)),
            LayerSpec(f"pw{i}", "conv2d", (64, 25, 5), (64, 64, 1, 1), (64, 25, 5), 25 * 5 * 64 * 64,
                      inputs=("previous",)),
        ]  # fmt: skip
    return ModelSpec("ds_cnn", (*layers, linear("fc", 64, 12)))


def visual_wake_words() -> ModelSpec:
    """Person detection of MLPerf Tiny: MobileNetV1 0.25 on 96 x 96 pixels [2106.07597]."""
    return ModelSpec("visual_wake_words", mobilenet_v1(0.25, 96, 2).layers)


def autoencoder() -> ModelSpec:
    """Anomaly detection of MLPerf Tiny: an autoencoder of 640 features [2106.07597]."""
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)
    layers = [linear(f"fc{i}", c, n) for i, (c, n) in enumerate(pairwise(sizes))]
    return ModelSpec("autoencoder", tuple(layers))


MLPERF_TINY = {"ic": resnet8, "kws": ds_cnn, "vww": visual_wake_words, "ad": autoencoder}
