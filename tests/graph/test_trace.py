from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import INTEGER, SMALL, build, image, inputs, samples, traced, trained_digits_cnn, trained_norms
from torch import nn

from haqsearch.errors import DataError, ModelError
from haqsearch.graph import model_spec, run_float, trace
from haqsearch.models.resnet_cifar import resnet20
from haqsearch.ptq import prepare


def as_tensor(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_computes_what_the_model_computes_at_every_batch_size(name):
    model = build(name)
    graph = traced(name)
    for batch in (1, 2, 5):
        x = inputs(name, batch, batch)
        with torch.no_grad():
            torch.testing.assert_close(run_float(graph, x), as_tensor(model(x)), rtol=1e-5, atol=1e-5)


def test_the_zoo_is_traced_without_float_regions():
    for model, shape in ((trained_digits_cnn(), (1, 8, 8)), (resnet20(), (3, 32, 32))):
        trained_norms(model)
        x = samples(shape, 3)
        graph = trace(model, x)
        assert {node.attributes["target"] for node in graph.nodes if node.op == "float"} == {"aten.batch_norm.default"}
        with torch.no_grad():
            torch.testing.assert_close(run_float(graph, x), model.eval()(x), rtol=1e-4, atol=1e-4)
        assert not [node for node in prepare(graph).nodes if node.op in {"float", "clamp"}]


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_called_by_their_dotted_module_path(name):
    model = build(name)
    modules = dict(model.named_modules())
    spec = model_spec(prepare(traced(name)))
    for layer in spec:
        module = modules[layer.name]
        if layer.quantizable:
            assert isinstance(module, nn.Linear if layer.op == "linear" else nn.Conv2d)
            assert layer.weight_shape == tuple(module.weight.shape)
    quantized = {n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in spec.quantizable} == quantized - {"2" if name == "same_even" else ""}


@pytest.mark.parametrize("name", INTEGER)
def test_integer_nets_have_no_float_region(name):
    assert "float" not in {node.op for node in prepare(traced(name)).nodes}


@pytest.mark.parametrize(
    ("name", "layer", "op"),
    [
        ("transposed", "1", "conv_transpose2d"),
        ("lstm", "lstm", "lstm"),
        ("embedding", "table", "embedding"),
        ("same_even", "2", "conv2d"),
    ],
)
def test_a_layer_without_an_integer_kernel_is_listed_with_the_reason(name, layer, op):
    spec = model_spec(prepare(traced(name)))
    assert [(item.name, item.op) for item in spec if not item.quantizable] == [(layer, op)]
    assert op in spec[layer].reason
    assert layer not in {item.name for item in spec.quantizable}


def test_shapes_leave_out_the_batch():
    graph = traced("shortcut")
    assert graph.input.shape == (2, 6, 6)
    assert graph[graph.output].shape == (3,)
    seen = {}
    run_float(graph, inputs("shortcut", 3), lambda node, value: seen.update({node.name: tuple(value.shape)}))
    assert seen == {node.name: (3, *node.shape) for node in graph.nodes}


def test_tracing_leaves_the_model_as_it_was():
    model = build("conv_norm").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, inputs("conv_norm", 3))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_digest_knows_weights_and_structure():
    def digest(name, seed=0):
        return trace(build(name, seed), inputs(name, 1)).digest

    assert digest("tuple") == digest("tuple")
    assert len({digest("tuple"), digest("tuple", 1), digest("dropout"), digest("perceptron")}) == 4


# -- what cannot be traced ------------------------------------------------------------------------------------------


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)


class TwoInputs(Bad):
    def forward(self, x, y):
        return self.layer(x) + y


class TwoOutputs(Bad):
    def forward(self, x):
        return self.layer(x), x


class CalledTwice(Bad):
    def forward(self, x):
        return self.layer(F.relu(self.layer(x)))


class CentredOnTheBatch(Bad):
    def forward(self, x):
        return self.layer(x - x.mean(0))


class Reversed(Bad):
    def forward(self, x):
        return self.layer(x.flip(0))


class FixedBatch(Bad):
    def forward(self, x):
        return self.layer(x).view(2, 4)


class BranchesOnData(Bad):
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -x


class IgnoresInput(Bad):
    def forward(self, x):
        return self.layer.weight


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (TwoInputs, "missing a required argument: 'y'"),
        (TwoOutputs, "one output tensor is needed, this one gives 2"),
        (CalledTwice, "layer 'layer' is called more than once"),
        (CentredOnTheBatch, "mixes the samples of a batch"),
        (Reversed, "mixes the samples of a batch"),
        (FixedBatch, "fixes its batch size"),
        (BranchesOnData, "torch.export cannot capture"),
        (IgnoresInput, "does not depend on the input"),
        (nn.ReLU, "no convolution or linear layer"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_clear_line(model, says):
    with pytest.raises(ModelError) as raised:
        model_spec(trace(model(), samples((4,), 3), "mine"))
    message = str(raised.value)
    assert message.startswith("mine: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value):
    model = image(nn.Conv2d(2, 4, 3), features=64)
    model[2].weight.data[1, 3] = value
    with pytest.raises(DataError, match=r"mine: parameter '2\.weight' holds NaN or infinity"):
        trace(model, samples((2, 6, 6), 1), "mine")


def test_a_dictionary_of_one_tensor_is_one_output():
    class Named(Bad):
        def forward(self, x):
            return {"logits": self.layer(x)}

    model, x = Named(), samples((4,), 3)
    torch.testing.assert_close(run_float(trace(model, x), x), model(x)["logits"])
