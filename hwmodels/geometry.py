"""A layer as the loops an accelerator runs: pixels x outputs x reduction, per group."""

from __future__ import annotations

from dataclasses import dataclass

from haqsearch.spec import LayerSpec


def ceil_div(a: float, b: float) -> int:
    """Smallest integer not below a / b."""
    return int(-(-a // b))


@dataclass(frozen=True)
class Loops:
    """One sample's work of a layer.

    kind       ``convolution``, ``depthwise`` or ``linear``
    groups     independent copies of the loops below (channels of a depthwise layer are not groups but outputs)
    pixels     output positions
    outputs    output channels of one group
    channels   input channels of one group; 1 of a depthwise layer
    taps       kernel positions: the reduction length is taps * channels
    fetched    input elements of all groups, the halo that the padding adds included
    first      the layer reads the network's input
    rows, columns   output positions, ``pixels`` in all; a linear layer's are rows
    kernel, stride  height and width of the window and its step; ``taps`` in all
    weights_before  weights of the network's earlier layers; 0 of a layer on its own
    """

    kind: str
    groups: int
    pixels: int
    outputs: int
    channels: int
    taps: int
    fetched: int
    macs: int
    first: bool
    rows: int = 1
    columns: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    weights_before: int = 0

    @property
    def reduction(self) -> int:
        return self.taps * self.channels

    @classmethod
    def of(cls, layer: LayerSpec) -> Loops:
        """Loops of ``layer``. An operator that is not known, or whose shape is not, is a matrix product with its
        weights and macs, ``pixels = macs / weights``, so that no layer is free because it is unusual.
        """
        first = not layer.inputs
        if layer.op in ("conv2d", "depthwise_conv2d") and len(layer.out_shape) == 3:
            kh, kw = layer.weight_shape[2:]
            oh, ow = layer.out_shape[1:]
            (sh, sw), inputs = layer.stride, layer.in_shape[0]
            fetched = inputs * ((oh - 1) * sh + kh) * ((ow - 1) * sw + kw)
            grid = (oh, ow, (kh, kw), (sh, sw))
            if layer.op == "depthwise_conv2d":
                return cls("depthwise", 1, oh * ow, layer.out_channels, 1, kh * kw, fetched, layer.macs, first, *grid)
            groups = layer.groups
            outputs, channels = layer.out_channels // groups, layer.weight_shape[1]
            return cls("convolution", groups, oh * ow, outputs, channels, kh * kw, fetched, layer.macs, first, *grid)
        outputs = layer.out_channels if layer.weight_shape else max(layer.out_shape[-1] if layer.out_shape else 1, 1)
        if layer.op == "linear":
            reduction, pixels = layer.reduction, layer.out_pixels
        else:
            weights = layer.weight_count if layer.weight_shape else 0
            pixels = ceil_div(layer.macs, weights) if weights else max(ceil_div(layer.out_elements, outputs), 1)
            reduction = layer.reduction if weights else ceil_div(layer.macs, outputs * pixels)
        return cls("linear", 1, pixels, outputs, reduction, 1, layer.in_elements, layer.macs, first, pixels)
