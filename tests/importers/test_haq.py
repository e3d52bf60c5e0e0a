"""HAQ's strategies, as its README and finetune.py have them, for the networks they were found for."""

from __future__ import annotations

import re

import pytest

from haqsearch.errors import PolicyError
from haqsearch.importers import IMPORTERS, import_policy
from haqsearch.spec import Choice, Format, LayerSpec, ModelSpec

# github.com/mit-han-lab/haq, README.md: MobileNetV2 at 0.6 of its latency, linear; 52 convolutions and a linear layer
LINEAR = """
# preserve ratio 60%
strategy = [[8, -1], [7, 7], [5, 6], [4, 6], [5, 6], [5, 7], [5, 6], [7, 4], [4, 6], [4, 6], [7, 7], [5, 6], [4, 6],
 [7, 3], [5, 7], [4, 7], [7, 3], [5, 7], [4, 7], [7, 7], [4, 7], [4, 7], [6, 4], [6, 7], [4, 7], [7, 4], [6, 7], [5, 7],
 [7, 4], [6, 7], [5, 7], [7, 4], [6, 7], [6, 7], [6, 4], [5, 7], [6, 7], [6, 4], [5, 7], [6, 7], [7, 7], [4, 7], [7, 7],
 [7, 7], [4, 7], [7, 7], [7, 7], [4, 7], [7, 7], [7, 7], [4, 7], [7, 7], [8, 8]]
"""


def chain(count: int, **more) -> ModelSpec:
    def layer(i: int) -> LayerSpec:
        return LayerSpec(f"block.{i}", "conv2d", (4, 8, 8), (4, 4, 3, 3), (4, 8, 8), 9216, **more.get(f"_{i}", {}))

    return ModelSpec("chain", tuple(layer(i) for i in range(count)))


def imported(text, model, tmp_path, tool="haq"):
    file = tmp_path / "strategy.txt"
    file.write_text(text)
    return import_policy(tool, file, model)


@pytest.fixture(scope="module")
def mobilenet():
    import torch

    from haqsearch.graph import model_spec, trace
    from haqsearch.models.mobilenet_v2 import mobilenet_v2
    from haqsearch.ptq.fold import prepare

    return model_spec(prepare(trace(mobilenet_v2().eval(), torch.zeros(1, 3, 64, 64), "mobilenet_v2")))


def test_the_published_linear_strategy_fits_mobilenet_v2(mobilenet, tmp_path):
    policy, notes = (found := imported(LINEAR, mobilenet, tmp_path)).policy, found.notes
    texts = [str(policy[layer.name]) for layer in mobilenet]
    assert texts[:4] == ["w8a8", "w7a7", "w5a6", "w4a6"]
    assert texts[-2:] == ["w7a7", "w8a8"]
    assert len(texts) == 53
    assert not notes


def test_a_kmeans_strategy_is_codebooks_and_activations_of_8_bits(tmp_path):
    found = imported("strategy = [6, 6, 5, 3]", chain(4), tmp_path)
    assert [str(choice) for choice in found.policy.values()] == [f"kmeans{b}/uint8" for b in (6, 6, 5, 3)]
    assert any("leaves them in float" in note for note in found.notes)


@pytest.mark.parametrize("text", ["[6, 5]", "[6,\n 5,]\n", "best_policy: [6, 5]", "(x) strategy = [6, 5]  "])
def test_the_list_may_stand_in_python_or_a_log(text, tmp_path):
    assert imported(text, chain(2), tmp_path).policy["block.1"].weight == Format("kmeans", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[6, 6, 5]", "3 entries for 4 convolutions and linear layers: none is left for block.3"),
        ("[6, 6, 5, 5, 4, 3]", "no layer is left for entry 4 (4), entry 5 (3)"),
        ("[6, 6, 5, 9]", "layer 'block.3': 9 bits; codebooks of k-means have 1 to 8"),
        ("[6, 6, 5, 0]", "layer 'block.3': 0 is not a number of bits"),
        ("[6, 6, 5, 2.5]", "2.5 is not a number of bits"),
        ("[6, 6, 5, True]", "True is not a number of bits"),
        ("[[8, -1], [4, 4], 6, [8, 8]]", "layer 'block.2': 6 is no pair of bits, as the others are"),
        ("[[8, -1], [4, 4], [1, 4], [8, 8]]", "layer 'block.2': unknown number format 'int1'"),
        ("[[8, -1], [4, 4], [4, -1, 3], [8, 8]]", "is no pair of bits"),
        ("[[8, -1], [4, -2], [4, 4], [8, 8]]", "layer 'block.1': -2 is not a number of bits"),
        ("{}", "no list like [6, 6, 5]"),
        ("[", "no list like"),
        ("[]", "no list like"),
        ("[__import__('os').getcwd()]", "no list like"),
    ],
)
def test_what_does_not_fit_is_said_with_the_place(text, message, tmp_path):
    with pytest.raises(PolicyError, match=re.escape(message)) as caught:
        imported(text, chain(4), tmp_path)
    assert "strategy.txt" in str(caught.value)


def test_layers_that_share_an_input_share_the_widest_width(tmp_path):
    model = chain(4, _1={"activation_tie": "x"}, _2={"activation_tie": "x"})
    found = imported("[[8, -1], [4, 3], [5, 6], [8, 8]]", model, tmp_path)
    assert found.policy["block.1"] == Choice.parse("w4a6")
    assert found.policy["block.2"] == Choice.parse("w5a6")
    assert found.notes == ("block.1, block.2 read one tensor: uint6, the widest of their activations",)


def test_a_layer_that_stays_in_float_is_counted_and_told(tmp_path):
    model = chain(3, _1={"quantizable": False, "reason": "odd"})
    found = imported("[6, 5, 4]", model, tmp_path)
    assert [str(choice) for choice in found.policy.values()] == ["kmeans6/uint8", "float32", "kmeans4/uint8"]
    assert any(note.startswith("block.1: float32") for note in found.notes)


@pytest.mark.parametrize("tool", IMPORTERS)
def test_a_file_that_is_not_there_or_not_text(tool, tmp_path):
    with pytest.raises(PolicyError, match="not readable"):
        import_policy(tool, tmp_path / "none", chain(2))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(PolicyError, match="not readable"):
        import_policy(tool, tmp_path / "binary", chain(2))


def test_an_unknown_tool_gets_the_nearest(tmp_path):
    with pytest.raises(PolicyError, match="did you mean 'nncf'"):
        import_policy("nncff", tmp_path / "x", chain(2))
