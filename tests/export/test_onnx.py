"""Every export is run by the other tool: ONNX Runtime, without graph optimizations, must give the program's own outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from networks import FLOAT, INTEGER, inputs, prepared, random_policy, samples, small
from torch import nn

from haqsearch.errors import ExportError
from haqsearch.export import EXPORTERS, exporter
from haqsearch.runtime import run_codes, run_program
from haqsearch.spec import Choice, Policy


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx(path, x):
    session = session_of(str(path))
    return torch.cat([torch.from_numpy(session.run(None, {"input": part.numpy()})[0]) for part in x.split(100)])


def differences(program, path, x):
    """For every tensor of codes, in order: how far ONNX Runtime's codes are from the program's, (B, ...)."""
    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    theirs = session_of(model.SerializeToString()).run(names, {"input": x.numpy()})
    return {
        name: (torch.from_numpy(codes.astype(np.int64)) - run_codes(replace(program, output=name), x).long()).abs()
        for name, codes in zip(names, theirs, strict=True)
    }


def check_equal(program, path, x):
    """Every tensor's codes equal; of the 16-bit output at most one code in a thousand is off, by one step.

    There a float32 sum errs: of a code in the thousands its own step is 2**-24, so several summands may err by a thousandth
    of a code, and 1 / (2 q) from a tie (haqsearch/quant/ties.py) is no more than that.
    """
    found = differences(program, path, x)
    output = found.pop(program.output)
    assert not {name: int(steps.max()) for name, steps in found.items() if steps.any()}
    assert int(output.max()) <= 1
    assert (output == 0).double().mean() >= 0.999 or int((output > 0).sum()) <= 1


def exported(program, folder, **metadata):
    path = folder / f"{program.name}.onnx"
    exporter("onnx")(program, path, metadata)
    return path


@pytest.mark.parametrize("name", INTEGER)
def test_onnx_runtime_gives_exactly_the_programs_outputs(name, tmp_path):
    ready = small(name)
    for seed in (22, 23):
        program, x = ready.lower(random_policy(ready, seed)), inputs(name, 300, seed) * 1.5
        path = exported(program, tmp_path)
        onnx.checker.check_model(str(path), full_check=True)
        check_equal(program, path, x)
        real, info = run_onnx(path, x), program.output_info
        assert (real - run_program(program, x)).abs().max() <= 1.001 * info.scale


def test_digits_cnn_on_real_digits(digits, tmp_path):
    ready, splits = digits
    policies = [Policy.uniform(ready.spec, Choice.parse(text)) for text in ("w8a8", "w3a3")]
    x = splits.report[0]
    for policy in [*policies, *[random_policy(ready, seed) for seed in range(2)]]:
        program = ready.lower(policy)
        check_equal(program, exported(program, tmp_path), x)


def test_optimized_onnx_runtime_agrees_on_digits(digits, tmp_path):
    """With its own integer kernels it may saturate on this machine; with 7-bit activations nothing can."""
    ready, splits = digits
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w7a7")))
    session = onnxruntime.InferenceSession(str(exported(program, tmp_path)), providers=["CPUExecutionProvider"])
    x = splits.report[0][:200]
    got = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    agree = (got.argmax(1) == run_program(program, x).argmax(1)).double().mean()
    assert agree >= 0.98


def test_an_average_pool_with_an_even_window_kept_as_a_stream_may_tie(tmp_path):
    """The one exception (haqsearch/graph/ranges.py): with an even window sums can fall halfway between two codes.

    The scales of a pool and of what it pools are odd multiples of one unit, so their ratio over a window of four can be an
    odd number over two. Then the program rounds up and ONNX to even: one step apart, and only there.
    """

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = F.avg_pool2d(torch.relu(self.conv(x)), 2)
            return (x + self.head(x)).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ready = prepared(Net().eval(), samples((2, 6, 6), 64), "even")
    program = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8")))
    path = exported(program, tmp_path)
    found = differences(program, path, samples((2, 6, 6), 300, 1))
    (pool,) = (step for step in program.instructions if step.op == "avg_pool2d" and step.attributes["kernel"] == [2, 2])
    before = list(found)[: list(found).index(pool.outputs[0])]
    assert not any(found[name].any() for name in before)
    assert int(found[pool.outputs[0]].max()) <= 1
    assert (found[pool.outputs[0]] > 0).double().mean() < 0.02


def test_files_carry_the_integers_themselves(digits, tmp_path):
    ready, _ = digits
    policy = random_policy(ready, 6)
    program = ready.lower(policy)
    model = onnx.load(exported(program, tmp_path, policy=policy.digest))
    tensors = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    for step in program.instructions:
        if step.layer:
            codes = tensors[f"{step.layer}.weight_codes"]
            assert codes.dtype == np.int8
            assert np.array_equal(codes, program.constants[f"{step.name}.weight"].numpy())
            assert np.abs(codes).max() <= policy[step.layer].weight.code_max
            assert tensors[f"{step.layer}.bias_codes"].dtype == np.int32
    floats = [name for name, value in tensors.items() if value.dtype == np.float32 and value.ndim > 1]
    assert not floats
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties == {"haqsearch.program": program.name, "policy": policy.digest}
    assert model.opset_import[0].version == 21


def test_any_batch_size_is_accepted(tmp_path):
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 7))
    path = exported(program, tmp_path)
    for batch in (1, 2, 17):
        assert run_onnx(path, inputs("shortcut", batch)).shape == (batch, 3)


def test_the_same_program_gives_the_same_file(tmp_path):
    ready = small("concat")
    first = exported(ready.lower(random_policy(ready, 7)), tmp_path).read_bytes()
    assert exported(ready.lower(random_policy(ready, 7)), tmp_path).read_bytes() == first


@pytest.mark.parametrize("name", FLOAT)
def test_float_regions_cannot_be_exported(name, tmp_path):
    ready = small(name)
    program = ready.lower(random_policy(ready, 1))
    with pytest.raises(ExportError, match="runs in float32, which this ONNX export cannot express"):
        exported(program, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_layer_that_runs_in_float_is_named(tmp_path):
    ready = small("lstm")
    program = ready.lower(random_policy(ready, 1))
    with pytest.raises(ExportError, match=r"^(lstm|aten\.\w+\.\w+): runs in float32"):
        exported(program, tmp_path)


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(ExportError, match=r"no export format 'onx'; known: onnx, onnx-integer; did you mean 'onnx'\?"):
        exporter("onx")
    with pytest.raises(ExportError, match=r"no export format 'tflite'; known: onnx, onnx-integer$"):
        exporter("tflite")


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_registered_exporter_can_be_had(name):
    assert callable(exporter(name))


@pytest.mark.data
@pytest.mark.parametrize(("count", "kind"), [(500, "w8a8"), (2000, "mixed")])
def test_resnet20_on_cifar10(resnet20_cifar10, tmp_path, count, kind):
    ready, splits = resnet20_cifar10
    policy = random_policy(ready, 5, 3) if kind == "mixed" else Policy.uniform(ready.spec, Choice.parse(kind))
    program, x = ready.lower(policy), splits.report[0][:count]
    ours = torch.cat([run_codes(program, part) for part in x.split(100)])
    info = program.output_info
    real = run_onnx(exported(program, tmp_path), x)
    theirs = torch.round(real.double() / info.scale).long() + info.zero_point
    steps = (theirs - ours).abs()
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert (steps <= 1).double().mean() >= 0.999
    print(f"{kind}: {int((steps > 0).sum())} of {steps.numel()} outputs differ, by {int(steps.max())} steps at most")
