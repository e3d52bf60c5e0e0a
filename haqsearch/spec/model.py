"""What a network looks like to everything that never sees a tensor: layers as shapes, activations as lifetimes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from math import prod


@dataclass(frozen=True)
class LayerSpec:
    """One layer with weights. Shapes are without the batch dimension.

    name            dotted module path, the layer's only identity
    op              conv2d, depthwise_conv2d, linear; of a layer that stays in float: its own operator name
    in_shape        (C, H, W) or (features,)
    weight_shape    (out, in / groups, kh, kw) or (out, in)
    out_shape       (N, H, W) or (features,)
    groups, stride, kernel
    macs            multiply-accumulates for one sample
    has_bias        whether the deployed layer carries a bias (BN folding adds one)
    inputs          names of the layers whose results reach this one
    activation_tie  name of the group of layers that read the very same tensor, hence share its format
    quantizable     False: the layer stays in float32, and ``reason`` says why
    """

    name: str
    op: str
    in_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: int
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    has_bias: bool = True
    inputs: tuple[str, ...] = ()
    activation_tie: str = ""
    quantizable: bool = True
    reason: str = ""

    @property
    def weight_count(self) -> int:
        return prod(self.weight_shape)

    @property
    def out_channels(self) -> int:
        return self.weight_shape[0]

    @property
    def reduction(self) -> int:
        """Products summed for one output value: kh * kw * C / groups."""
        return prod(self.weight_shape[1:])

    @property
    def in_elements(self) -> int:
        return prod(self.in_shape)

    @property
    def out_elements(self) -> int:
        return prod(self.out_shape)

    @property
    def out_pixels(self) -> int:
        """Output positions per sample: H * W of a convolution, 1 of a linear layer on a vector."""
        return max(self.out_elements // max(self.out_channels, 1), 1)


@dataclass(frozen=True)
class ActivationSpec:
    """One buffer of the deployed program: ``elements`` per sample, alive from step ``first`` to step ``last`` inclusive.

    ``format_of`` names the layer whose activation format the buffer is stored in; empty: ``bits`` fixed
    (the 8-bit residual stream, or 32 in a float region).
    """

    name: str
    elements: int
    first: int
    last: int
    format_of: str = ""
    bits: int = 8


@dataclass(frozen=True)
class ModelSpec:
    """A traced network: its layers in execution order and its activation buffers with their lifetimes."""

    name: str
    layers: tuple[LayerSpec, ...]
    activations: tuple[ActivationSpec, ...] = ()
    input_shape: tuple[int, ...] = ()
    _by_name: dict[str, LayerSpec] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {layer.name: layer for layer in self.layers})

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpec:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def quantizable(self) -> tuple[LayerSpec, ...]:
        return tuple(layer for layer in self.layers if layer.quantizable)

    @property
    def ties(self) -> dict[str, tuple[str, ...]]:
        """Quantizable layers that share one activation format, by group; a layer alone is a group of one."""
        groups: dict[str, list[str]] = {}
        for layer in self.quantizable:
            groups.setdefault(layer.activation_tie or layer.name, []).append(layer.name)
        return {tie: tuple(names) for tie, names in groups.items()}

    @property
    def digest(self) -> str:
        """Digest of the structure (not of the weights)."""
        content = [asdict(layer) for layer in self.layers]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
