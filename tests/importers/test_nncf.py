"""NNCF's bitwidth_per_scope, in the forms that its versions write, for blocks named as MobileNetV2's and ResNet's."""

from __future__ import annotations

import json

import pytest

from haqsearch.errors import PolicyError
from haqsearch.importers import import_policy
from haqsearch.spec import LayerSpec, ModelSpec


def layer(name, *inputs, **more):
    return LayerSpec(name, "conv2d", (4, 8, 8), (4, 4, 1, 1), (4, 8, 8), 1024, inputs=inputs, **more)


# A stem, a block without a sum, a block with one, and what reads it: the names of torchvision's MobileNetV2.
MOBILE = ModelSpec(
    "mobile",
    (
        layer("features.0.0"),
        layer("features.1.conv.0.0", "features.0.0"),
        layer("features.1.conv.1", "features.1.conv.0.0"),
        layer("features.2.conv.0.0", "features.1.conv.1"),
        layer("features.2.conv.1.0", "features.2.conv.0.0"),
        layer("features.2.conv.2", "features.2.conv.1.0"),
        layer("features.3.0", "features.1.conv.1", "features.2.conv.2"),
    ),
)

# The shape of examples/torch/classification/configs/mixed_precision/mobilenet_v2_imagenet_mixed_int_manual.json
CONFIG = """
{
    "model": "mobilenet_v2", // torchvision's
    "target_device": "TRIAL",
    "compression": {
        "algorithm": "quantization",
        "weights": {"mode": "asymmetric", "per_channel": true, "bits": 4},
        "activations": {"mode": "asymmetric"},
        "initializer": {
            "precision": {
                "type": "manual",
                "bitwidth_per_scope": [
                    // [8, 4, 8, 4, 4, 4]
                    [8, "MobileNetV2/Sequential[features]/ConvBNActivation[0]/NNCFConv2d[0]/conv2d_0|WEIGHT"],
                    [8, "MobileNetV2/Sequential[features]/InvertedResidual[1]/Sequential[conv]/NNCFConv2d[1]/conv2d_0|WEIGHT"],
                    [2, "MobileNetV2/Sequential[features]/InvertedResidual[2]/Sequential[conv]/NNCFConv2d[2]/conv2d_0|WEIGHT"],
                    [8, "/nncf_model_input_0|OUTPUT"],
                    [7, "MobileNetV2/Sequential[features]/ConvBNActivation[0]/ReLU6[2]/hardtanh_0|OUTPUT"],
                    [6, "MobileNetV2/Sequential[features]/InvertedResidual[1]/Sequential[conv]/ConvBNActivation[0]/ReLU6[2]/hardtanh_0|OUTPUT"],
                    [5, "MobileNetV2/Sequential[features]/InvertedResidual[1]/Sequential[conv]/NNCFBatchNorm2d[2]/batch_norm_0|OUTPUT"],
                    [4, "MobileNetV2/Sequential[features]/InvertedResidual[2]/Sequential[conv]/ConvBNActivation[0]/ReLU6[2]/hardtanh_0|OUTPUT"],
                    [3, "MobileNetV2/Sequential[features]/InvertedResidual[2]/Sequential[conv]/ConvBNActivation[1]/ReLU6[2]/hardtanh_0|OUTPUT"],
                    [2, "MobileNetV2/Sequential[features]/InvertedResidual[2]/Sequential[conv]/NNCFBatchNorm2d[3]/batch_norm_0|OUTPUT"],
                    [6, "MobileNetV2/Sequential[features]/InvertedResidual[2]/__add___0|OUTPUT"],
                ]
            }
        }
    }
}
"""  # noqa: E501

# A residual block that calls F.relu, as CIFAR's ResNets do.
RESNET = ModelSpec(
    "resnet",
    (
        layer("conv1"),
        layer("layer1.0.conv1", "conv1"),
        layer("layer1.0.conv2", "layer1.0.conv1"),
        layer("linear", "conv1", "layer1.0.conv2"),
    ),
)


def imported(text, model, tmp_path):
    file = tmp_path / "nncf.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    return import_policy("nncf", file, model)


def test_a_configuration_with_comments(tmp_path):
    found = imported(CONFIG, MOBILE, tmp_path)
    assert [str(choice) for choice in found.policy.values()] == [
        "w8a8", "w4a7", "w8a6", "w4a5", "w4a4", "w2a3", "w4a6"
    ]  # fmt: skip
    assert len(found.notes) == 2
    assert "weights of 4 bits, the default" in found.notes[0]
    assert "NNCFBatchNorm2d[3]" in found.notes[1]  # a summand: the residual stream


def test_a_block_that_calls_its_relus(tmp_path):
    pairs = [
        [8, "ResNet/NNCFConv2d[conv1]/conv2d_0|WEIGHT"],
        [2, "ResNet/Sequential[layer1]/BasicBlock[0]/NNCFConv2d[conv1]/conv2d_0|WEIGHT"],
        [4, "ResNet/Sequential[layer1]/BasicBlock[0]/NNCFConv2d[conv2]/conv2d_0|WEIGHT"],
        [8, "ResNet/NNCFLinear[linear]/linear_0|WEIGHT"],
        [8, "/nncf_model_input_0|OUTPUT"],
        [7, "ResNet/relu_0|OUTPUT"],
        [4, "ResNet/Sequential[layer1]/BasicBlock[0]/relu_0|OUTPUT"],
        [2, "ResNet/Sequential[layer1]/BasicBlock[0]/relu_1|OUTPUT"],
    ]
    expected = ["w8a8", "w2a7", "w4a4", "w8a2"]
    for content in ({"bitwidth_per_scope": pairs}, pairs):
        found = imported(content, RESNET, tmp_path)
        assert [str(choice) for choice in found.policy.values()] == expected
        assert not found.notes


def test_calls_in_one_module_are_in_network_order(tmp_path):
    model = ModelSpec("net", (layer("stem"), layer("body", "stem"), layer("a_head", "body")))
    pairs = [[8, "/nncf_model_input_0|OUTPUT"], [5, "Net/relu_0|OUTPUT"], [3, "Net/relu_1|OUTPUT"]]
    found = imported(pairs, model, tmp_path)
    assert [str(choice) for choice in found.policy.values()] == ["w8a8", "w8a5", "w8a3"]


def test_scopes_of_older_versions(tmp_path):
    block = "ResNet/Sequential[layer1]/BasicBlock[0]"
    pairs = [
        [4, "TargetType.OPERATION_WITH_WEIGHTS ResNet/NNCFConv2d[conv1]/conv2d_0"],
        [8, "TargetType.OPERATOR_POST_HOOK /nncf_model_input_0"],
        [2, f"{block}/NNCFConv2d[conv2]/ModuleDict[pre_ops]/UpdateWeight[0]/AsymmetricQuantizer[op]"],
        [3, f"ModuleDict/AsymmetricQuantizer[{block}/relu_0]"],
    ]
    found = imported(pairs, RESNET, tmp_path)
    assert [str(choice) for choice in found.policy.values()] == ["w4a8", "w8a8", "w2a3", "w8a8"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ({"compression": {}}, 'no "bitwidth_per_scope"'),
        ([[4, "Net/NNCFConv2d[stem]/conv2d_0|WEIGHT"]], "resnet has no layer stem; it was written for another network"),
        ([["4", "ResNet/NNCFConv2d[conv1]/conv2d_0|WEIGHT"]], "'4' is not a number of bits"),
        ([[1, "ResNet/NNCFConv2d[conv1]/conv2d_0|WEIGHT"]], "layer 'conv1': unknown number format 'int1'"),
        ([[4, "conv1"]], "'conv1' is no place in NNCF's graph"),
        ([[4]], "is no pair of bits and a scope"),
        ({"bitwidth_per_scope": [4, "x"]}, "is no pair of bits and a scope"),
    ],
)
def test_what_does_not_fit_is_said(content, message, tmp_path):
    with pytest.raises(PolicyError, match=message.replace("[", r"\[")):
        imported(content, RESNET, tmp_path)
