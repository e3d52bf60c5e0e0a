"""The file of integers alone gives, in ONNX Runtime, every code of the program: ``==``, with and without graph optimizations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FLOAT, INTEGER, inputs, prepared, random_policy, samples, small
from torch import nn

from haqsearch.errors import ExportError
from haqsearch.export import exporter, file_name
from haqsearch.runtime import run_codes, run_program
from haqsearch.spec import Choice, Format, Policy

LEVELS = onnxruntime.GraphOptimizationLevel


def session_of(model, level=LEVELS.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 2  # an unused initializer is a warning, and a fault of ours
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exported(program, folder):
    path = folder / file_name("onnx-integer")
    exporter("onnx-integer")(program, path, {})
    return path


def codes_of(model, program):
    """Names of the program's own values in the file."""
    return [name for node in model.graph.node for name in node.output if name in program.tensors]


@pytest.mark.parametrize("name", INTEGER)
def test_every_code_is_the_programs_and_so_is_the_output(name, tmp_path, capfd):
    ready = small(name)
    for seed in (22, 23):
        program, x = ready.lower(random_policy(ready, seed)), inputs(name, 100, seed) * 1.5
        path = exported(program, tmp_path)
        model = onnx.load(path)
        names = codes_of(model, program)
        assert program.output in names
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in names)
        theirs = session_of(model.SerializeToString(), LEVELS.ORT_DISABLE_ALL).run(names, {"input": x.numpy()})
        for value, codes in zip(names, theirs, strict=True):
            ours = run_codes(replace(program, output=value), x)
            assert torch.equal(torch.from_numpy(codes.astype(np.int64)), ours.long()), value
        real = session_of(str(path)).run(None, {"input": x.numpy()})[0]
        assert torch.equal(torch.from_numpy(real), run_program(program, x))
    assert "Removing initializer" not in capfd.readouterr().err


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from(("shortcut", "concat", "avg_pool_padded", "grouped", "tokens", "relu6")))
def test_any_policy_on_any_input(tmp_path_factory, seed, name):
    ready = small(name)
    program, x = ready.lower(random_policy(ready, seed)), inputs(name, 20, seed) * 3
    real = session_of(str(exported(program, tmp_path_factory.mktemp("any")))).run(None, {"input": x.numpy()})[0]
    assert torch.equal(torch.from_numpy(real), run_program(program, x))


def test_an_average_pool_with_an_even_window_is_exact_where_pairs_may_tie(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = nn.functional.avg_pool2d(torch.relu(self.conv(x)), 2)
            return (x + self.head(x)).mean((2, 3))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        ready = prepared(Net().eval(), samples((2, 6, 6), 64), "even")
    program, x = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8"))), samples((2, 6, 6), 300, 1)
    real = session_of(str(exported(program, tmp_path))).run(None, {"input": x.numpy()})[0]
    assert torch.equal(torch.from_numpy(real), run_program(program, x))


def test_extreme_weights_and_inputs_do_not_saturate(tmp_path):
    """All weights at their largest, all codes at theirs: where u8 x s8 kernels without VNNI add in 16 bits."""
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    ready = prepared(net.eval(), torch.rand(64, 8, 6, 6, generator=torch.Generator().manual_seed(1)), "extreme")
    program, x = ready.lower(Policy.uniform(ready.spec, Choice.parse("w8a8"))), torch.full((3, 8, 6, 6), 9.0)
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        real = session_of(str(exported(program, tmp_path)), level).run(None, {"input": x.numpy()})[0]
        assert torch.equal(torch.from_numpy(real), run_program(program, x))


def test_no_floats_stand_between_the_ends(tmp_path):
    ready = small("shortcut")
    model = onnx.load(exported(ready.lower(random_policy(ready, 7)), tmp_path))
    used = [node.op_type for node in model.graph.node]
    assert (used.count("QuantizeLinear"), used.count("DequantizeLinear")) == (1, 1)
    floats = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert len(floats) <= 4, floats  # scale and bounds of the input, scale of the output
    assert "Conv" not in used and "ConvInteger" in used


def test_any_batch_size_is_accepted_and_the_same_program_gives_the_same_file(tmp_path):
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 7))
    path = exported(program, tmp_path)
    for batch in (1, 2, 17):
        assert session_of(str(path)).run(None, {"input": inputs("shortcut", batch).numpy()})[0].shape == (batch, 3)
    first = path.read_bytes()
    assert exported(ready.lower(random_policy(ready, 7)), tmp_path).read_bytes() == first


def test_what_it_cannot_say_is_named(tmp_path):
    ready = small(next(iter(FLOAT)))
    with pytest.raises(ExportError, match="runs in float32"):
        exported(ready.lower(random_policy(ready, 1)), tmp_path)
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 1))
    step = next(step for step in program.instructions if step.layer)
    wide = replace(program.tensors[step.inputs[0]], format=Format.parse("uint9"))
    program = replace(program, tensors={**program.tensors, wide.name: wide})
    with pytest.raises(ExportError, match=rf"{step.layer}: reads 9-bit codes, .* multiply bytes"):
        exported(program, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "value"), [("shift", 62), ("multiplier", 2**62), ("offset", 2**62)])
def test_sums_that_would_not_fit_64_bits_are_refused(kind, value, tmp_path):
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 1))
    key = f"{program.output}.{kind}"
    huge = {**program.constants, key: torch.full_like(program.constants[key], value)}
    with pytest.raises(ExportError, match=rf"^{program.output}: its sums do not fit 64 bits"):
        exported(replace(program, constants=huge), tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_of_a_run_are_named_by_what_they_hold():
    assert [file_name(name) for name in ("onnx", "onnx-integer")] == ["model.onnx", "model.integer.onnx"]


@pytest.mark.data
def test_resnet20_on_cifar10_at_mixed_widths(resnet20_cifar10, tmp_path):
    ready, splits = resnet20_cifar10
    program, x = ready.lower(random_policy(ready, 5, 3)), splits.report[0][:300]
    session = session_of(str(exported(program, tmp_path)))
    for part in x.split(100):
        real = torch.from_numpy(session.run(None, {"input": part.numpy()})[0])
        assert torch.equal(real, run_program(program, part))
