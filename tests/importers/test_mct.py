"""Sony MCT's bits of each layer: its log, its graph's names, its indices."""

from __future__ import annotations

import json
import re

import pytest

from haqsearch.errors import PolicyError
from haqsearch.importers import import_policy
from haqsearch.spec import LayerSpec, ModelSpec


def layer(name):
    return LayerSpec(name, "conv2d", (4, 8, 8), (4, 4, 1, 1), (4, 8, 8), 1024)


MODEL = ModelSpec("resnet", tuple(layer(name) for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2", "linear")))


def imported(content, tmp_path):
    file = tmp_path / "mct.txt"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return import_policy("mct", file, MODEL)


LOG = """\
INFO:Model Compression Toolkit:Starting to run mixed-precision optimization
Final weights bit-width configuration: [8, 4, 2, 8]
"""


@pytest.mark.parametrize(
    "content",
    [
        LOG,
        {"conv1_bn": 8, "layer1_0_conv1_bn": 4, "layer1_0_conv2_bn": 2, "linear": 8},
        {"linear": 8, "layer1.0.conv1": 4, "layer1.0.conv2": 2, "conv1": 8},
        {"mixed_precision_cfg": [0, 1, 2, 0], "candidates": [8, 4, 2]},
        {"mixed_precision_cfg": [0, 1, 2, 0], "candidates": [[8, 8], [4, 8], [2, 8]]},
        [8, 4, 2, 8],
    ],
)
def test_every_form_gives_the_policy(content, tmp_path):
    found = imported(content, tmp_path)
    assert [str(choice) for choice in found.policy.values()] == ["w8a8", "w4a8", "w2a8", "w8a8"]
    assert list(found.policy) == [layer.name for layer in MODEL]


def test_activations_of_outputs_are_not_taken_for_inputs(tmp_path):
    assert not imported(LOG, tmp_path).notes
    both = imported(LOG + "Final activation bit-width configuration: [8, 8, 4, 4, 8]\n", tmp_path)
    assert both.policy == imported(LOG, tmp_path).policy
    assert "activations have 8 bits" in both.notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Final weights bit-width configuration: [8, 4]", "2 entries for 4 convolutions and linear layers"),
        ("Final activation bit-width configuration: [8, 4]", "a log without"),
        ("Final weights bit-width configuration: [8, x]", "is no list of widths"),
        (
            {"conv1": 8, "layer9": 4},
            "resnet has no layer layer9; nothing is said of layer1.0.conv1, layer1.0.conv2, linear",
        ),
        ({"mixed_precision_cfg": [0, 1, 2, 0]}, "add what they are indices of"),
        ({"mixed_precision_cfg": [0, 1, 3, 0], "candidates": [8, 4, 2]}, "3 is no index of the 3 candidates"),
        ({"mixed_precision_cfg": [0, 1, 2], "candidates": [8, 4, 2]}, "none is left for linear"),
        ([8, 4, "2", 8], "layer 'layer1.0.conv2': '2' is not a number of bits"),
        ("hello", "neither MCT's log, nor JSON"),
        ({}, "neither MCT's log, nor JSON"),
    ],
)
def test_what_does_not_fit_is_said(content, message, tmp_path):
    with pytest.raises(PolicyError, match=re.escape(message)) as caught:
        imported(content, tmp_path)
    assert "mct.txt" in str(caught.value)
