"""Networks as shapes, and strategies for random ones."""

from __future__ import annotations

import csv
from pathlib import Path

from hypothesis import strategies as st

from haqsearch.spec import ActivationSpec, Choice, Format, LayerSpec, ModelSpec
from hwmodels.networks import conv, linear, mobilenet_v1

__all__ = ["GOLDEN", "conv", "layers", "linear", "mobilenet_v1", "mobilenet_v2", "models", "wa"]

GOLDEN = Path(__file__).parent / "golden"


def wa(w: int, a: int) -> Choice:
    return Choice(Format("int", w), Format("uint", a))


def mobilenet_v2() -> ModelSpec:
    """MobileNetV2-1.0-224, from the committed shapes of HAQ's table."""
    layers = []
    with (GOLDEN / "mobilenetv2_layers.csv").open() as file:
        for row in csv.DictReader(file):
            name, c, n = f"l{row['layer_idx']}", int(row["in_ch"]), int(row["out_ch"])
            if row["op"] == "fc":
                layers.append(linear(name, c, n))
                continue
            k, stride, out, groups = (int(row[key]) for key in ("kernel", "stride", "out_hw", "groups"))
            layers.append(conv(name, c, n, k, out, stride, groups, inputs=() if name == "l0" else ("previous",)))
    return ModelSpec("mobilenet_v2", tuple(layers))


@st.composite
def layers(draw: st.DrawFn, name: str = "layer") -> LayerSpec:
    """Any layer that a network may hold: convolutions plain, grouped and depthwise, and linear ones."""
    kind = draw(st.sampled_from(["conv", "grouped", "depthwise", "linear"]))
    c, n = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    bias = draw(st.booleans())
    if kind == "linear":
        return linear(name, c, n, has_bias=bias)
    k, out, stride = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 40)), draw(st.sampled_from([1, 2]))
    if kind == "depthwise":
        return conv(name, c + 1, c + 1, k, out, stride, groups=c + 1, has_bias=bias)
    groups = draw(st.integers(2, 4)) if kind == "grouped" else 1
    return conv(name, 2 * c * groups, n * groups, k, out, stride, groups, has_bias=bias)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Two to four layers; some share their input, one may stay in float; buffers with overlapping lifetimes."""
    count = draw(st.integers(2, 4))
    tied = draw(st.booleans())
    found = []
    for i in range(count):
        layer = draw(layers(f"l{i}"))
        changes: dict[str, object] = {"activation_tie": "shared" if tied and i < 2 else ""}
        if i == count - 1 and draw(st.booleans()):
            changes = {"quantizable": False, "reason": "drawn so"}
        found.append(LayerSpec(**{**layer.__dict__, **changes}))  # type: ignore[arg-type]
    buffers = []
    for i, name in enumerate([*(layer.name for layer in found), ""]):
        elements, last = draw(st.integers(1, 999)), i + draw(st.integers(0, 2))
        buffers.append(ActivationSpec(f"b{i}", elements, i, last, name, draw(st.sampled_from([8, 32]))))
    return ModelSpec("random", tuple(found), tuple(buffers))
