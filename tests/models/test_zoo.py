"""Every architecture by name: traced whole, lowered to integers, and with its public weights as good as published."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import prepared, samples, trained_norms

from haqsearch.data import DATASETS, DataSet
from haqsearch.models import MODELS
from haqsearch.models.same import SameConv2d, same_padding
from haqsearch.runtime import run_codes
from haqsearch.spec import Choice, Policy

SHAPES = {
    "autoencoder_ad01": (640,),
    "digits_cnn": (1, 8, 8),
    "ds_cnn": (1, 49, 10),
    "mobilenet_v1_025": (3, 96, 96),
    "mobilenet_v2": (3, 32, 32),  # of any size; 224 would take a while
    "resnet18": (3, 32, 32),
}
LAYERS = {
    "autoencoder_ad01": 10,
    "ds_cnn": 10,
    "mobilenet_v1_025": 28,
    "mobilenet_v2": 53,
    "resnet8": 10,
    "resnet18": 21,
}
PARAMETERS = {
    "mobilenet_v2": 3_487_816,
    "resnet18": 11_689_512,
    "resnet8": 78_666 - 480,
}  # without batch norms' statistics


def named(table: dict[str, str], name: str):
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


LONG = {"resnet18", "resnet32", "resnet44", "resnet56"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in MODELS])
def test_every_model_is_computed_in_integers_throughout(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = named(MODELS, name)()
        trained_norms(model)
    ready = prepared(model.eval(), samples(SHAPES.get(name, (3, 32, 32)), 2), name)
    assert all(layer.quantizable for layer in ready.spec)
    assert len(ready.spec) == LAYERS.get(name, len(ready.spec))
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w4a5")))
    assert {"float", "dequantize"}.isdisjoint(step.op for step in program.instructions)
    assert len(run_codes(program, samples(SHAPES.get(name, (3, 32, 32)), 1))) == 1


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name):
    assert sum(p.numel() for p in named(MODELS, name)().parameters()) == PARAMETERS[name]


sizes, kernels, strides = st.integers(1, 40), st.integers(1, 10), st.integers(1, 4)


@given(sizes, kernels, strides)
def test_same_padding_is_the_least_that_makes_every_output(size, kernel, stride):
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    outputs = -(-size // stride)
    assert (size + before + after - kernel) // stride + 1 == outputs
    if before + after:
        assert (size + before + after - 1 - kernel) // stride + 1 < outputs


@settings(max_examples=40, deadline=None)
@given(st.tuples(sizes, sizes), st.tuples(kernels, kernels), strides, st.integers(0, 999))
def test_a_same_convolution_sees_zeros_around_the_image(size, kernel, stride, seed):
    """Against the definition: the image laid on a large field of zeros, every window cut out of it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = SameConv2d(1, 2, kernel, stride).double()
    x = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    field = torch.nn.functional.pad(x, (20, 20, 20, 20))
    got = conv(x)
    assert got.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
    top, left = (20 - same_padding(n, k, stride)[0] for n, k in zip(size, kernel, strict=True))
    for i in {0, got.shape[2] - 1}:
        for j in {0, got.shape[3] - 1}:
            rows, columns = top + i * stride, left + j * stride
            window = field[0, 0, rows : rows + kernel[0], columns : columns + kernel[1]]
            expected = (conv.weight[:, 0] * window).sum((1, 2)) + conv.bias
            torch.testing.assert_close(got[0, :, i, j], expected)


# -- with public weights -------------------------------------------------------------------------------------------------


def public(model: str, weights: str, data: str, roots: list[Path]) -> tuple[torch.nn.Module, DataSet]:
    from haqsearch.cli.float_network import load_weights
    from haqsearch.errors import DataError

    try:
        loaded = named(DATASETS, data)(roots)
        path = next(root / weights for root in roots if (root / weights).is_file())
    except (DataError, StopIteration):
        pytest.skip(f"needs {weights} and the data set {data} in one of {', '.join(map(str, roots))}")
    network = named(MODELS, model)()
    load_weights(network, path)
    return network.eval(), loaded


def accuracy(function, inputs, labels, batch=100):
    with torch.no_grad():
        return float((torch.cat([function(x) for x in inputs.split(batch)]).argmax(1) == labels).double().mean())


@pytest.mark.data
@pytest.mark.slow
def test_resnet8_is_as_published(data_root):
    network, data = public("resnet8", "resnet8_cifar10.safetensors", "cifar10_bytes", data_root)
    assert accuracy(network, data.test_inputs, data.test_labels) == pytest.approx(0.8719, abs=5e-4)
    ready = prepared(network, data.inputs[:512], "resnet8")
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8")))
    assert accuracy(lambda x: run_codes(program, x), data.test_inputs, data.test_labels) == pytest.approx(
        0.8719, abs=0.01
    )


@pytest.mark.data
def test_ds_cnn_is_as_published(data_root):
    network, data = public("ds_cnn", "dscnn_kws.safetensors", "kws01", data_root)
    assert accuracy(network, data.inputs, data.labels) == pytest.approx(0.915, abs=2e-3)
    ready = prepared(network, data.inputs[:200], "ds_cnn")
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8")))
    x, y = data.inputs[200:], data.labels[200:]
    assert accuracy(lambda x: run_codes(program, x), x, y) == pytest.approx(accuracy(network, x, y), abs=0.01)


@pytest.mark.data
@pytest.mark.slow
def test_mobilenet_v2_is_as_good_as_its_checkpoint(data_root):
    network, data = public("mobilenet_v2", "mobilenetv2_imagenet.safetensors", "imagenet_compat500", data_root)
    assert accuracy(network, data.inputs, data.labels, 20) == pytest.approx(0.848, abs=4e-3)
