"""The Triton kernels against the reference: on a GPU where there is one, by Triton's interpreter where there is none."""

from __future__ import annotations

import gc
import inspect
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import ModelError
from haqsearch.kernels import best_backend, get_backend, reference
from haqsearch.kernels.reference import accumulator_bound
from haqsearch.kernels.schema import SCHEMAS
from haqsearch.quant.packing import unpack_bits

from .laws import laws

triton = pytest.importorskip(
    "triton", reason="needs Triton, which torch brings for CUDA and `pip install triton` for its interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined

from haqsearch.kernels import triton as backend  # noqa: E402
from haqsearch.kernels.triton import packing  # noqa: E402

few = settings(laws, max_examples=20)
widths, seeds = st.integers(1, 8), st.integers(0, 2**32)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
OUTPUTS = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int32: (-(2**31), 2**31 - 1),
}


SUMS = (torch.tensor([2]), torch.tensor([1]), torch.tensor([1]), 0, *OUTPUTS[torch.int32], torch.int32)
"""The epilogue whose codes are the accumulators."""


def place(value):
    """``value`` on the device of these tests, tensors in lists and tuples too."""
    if isinstance(value, list | tuple):
        return type(value)(place(item) for item in value)
    return value.to(DEVICE) if isinstance(value, torch.Tensor) else value


def agree(operator, *arguments):
    got = getattr(backend, operator)(*place(arguments))
    expected = getattr(reference, operator)(*arguments)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert torch.equal(got.cpu(), expected)
    return got


def codes(draw, shape, low, high, dtype):
    """Codes in ``low`` .. ``high``: any, all at one end, or each at one of the ends."""
    fill = draw(st.sampled_from(["random", "random", "random", "random", "all max", "all min", "opposed"]))
    generator = torch.Generator().manual_seed(draw(seeds))
    if fill in {"all max", "all min"}:
        return torch.full(shape, high if fill == "all max" else low, dtype=dtype)
    if fill == "opposed":
        return torch.where(torch.rand(shape, generator=generator) < 0.5, low, high).to(dtype)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def weights(draw, shape):
    width = draw(widths)
    limit = 2 ** (width - 1)
    weight = codes(draw, shape, draw(st.sampled_from([-limit, 1 - limit])), max(limit - 1, 0), torch.int8)
    if width == 1 and draw(st.booleans()):
        weight = (2 * weight + 1).clamp(-1, 1)  # binary: -1 and 1
    return weight, width


def activations(draw, shape):
    """Codes of 1 to 8 bits, a zero point among them, and the largest distance from it."""
    steps = 2 ** draw(widths) - 1
    low, dtype = draw(st.sampled_from([(0, torch.uint8), (-(steps + 1) // 2, torch.int8)]))
    high = low + steps
    zero_point = draw(st.sampled_from([low, high, (low + high) // 2]))
    return codes(draw, shape, low, high, dtype), zero_point, max(zero_point - low, high - zero_point)


def requantization(draw, channels, bound):
    """multiplier, offset, shift, zero_point, low, high, dtype, for sums up to ``bound``; one for all channels, or one each.

    Codes that are the sums themselves hide no error; fitted to the range they are what a program has; any are any.
    """
    kind = draw(st.sampled_from(["sums", "sums", "fitted", "fitted", "any"]))
    if kind == "sums":
        return SUMS
    n = draw(st.sampled_from([1, channels]))
    generator = torch.Generator().manual_seed(draw(seeds))
    dtype = draw(st.sampled_from(list(OUTPUTS)))
    low, high = OUTPUTS[dtype]
    least, most, lowest = 1, 62, 0
    if kind == "fitted":
        middle = 31 + max(bound, 1).bit_length() - high.bit_length()
        least, most, lowest = max(middle - 1, 1), min(max(middle + 1, 1), 62), 2**30
    else:
        low, high = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    multiplier = torch.randint(lowest, 2**31, (n,), generator=generator)
    shift = torch.randint(least, most + 1, (n,), generator=generator)
    bias = torch.randint(-min(bound, 1000), min(bound, 1000) + 1, (n,), generator=generator)
    return multiplier, bias * multiplier + (1 << (shift - 1)), shift, draw(st.integers(-128, 255)), low, high, dtype


@contextmanager
def magnitude(limit):
    """As if partial sums left int32 beyond ``limit``, so that small layers are added up in 64 bits too."""
    before, packing.MAX_MAGNITUDE = packing.MAX_MAGNITUDE, limit
    try:
        yield
    finally:
        packing.MAX_MAGNITUDE = before


@settings(laws, max_examples=60)
@given(st.data())
def test_convolutions_equal_the_reference(data):
    draw = data.draw
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    groups, inside, outside = draw(
        st.one_of(
            st.tuples(st.just(1), st.integers(1, 19), st.integers(1, 19)),  # plain
            st.tuples(st.integers(2, 3), st.integers(1, 3), st.integers(1, 3)),  # grouped
            st.tuples(st.integers(1, 19), st.just(1), st.integers(1, 2)),  # depthwise, and with a multiplier
        )
    )
    sizes = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 9)) for i in (0, 1)]
    x, zero_point, largest = activations(draw, (draw(st.integers(1, 3)), groups * inside, *sizes))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    weight, width = weights(draw, (groups * outside, inside, *kernel))
    bound = accumulator_bound(weight, None, largest)
    epilogue = requantization(draw, len(weight), bound)
    with magnitude(draw(st.sampled_from([packing.MAX_MAGNITUDE, 0]))):
        got = agree(
            *("conv2d", x.contiguous(memory_format=layout), zero_point, weight, width),
            *(stride, padding, dilation, groups, bound, *epilogue),
        )
    assert got.is_contiguous(memory_format=torch.channels_last)


@few
@given(st.data())
def test_linear_layers_equal_the_reference(data):
    draw = data.draw
    features, outputs = draw(st.integers(1, 300)), draw(st.sampled_from([1, 9, 70]))
    x, zero_point, largest = activations(draw, (*draw(st.sampled_from([(1,), (2, 3), (1, 18)])), features))
    weight, width = weights(draw, (outputs, features))
    bound = accumulator_bound(weight, None, largest)
    with magnitude(draw(st.sampled_from([packing.MAX_MAGNITUDE, 0]))):
        agree("linear", x, zero_point, weight, width, bound, *requantization(draw, outputs, bound))


@pytest.mark.parametrize(
    "low_high_step", [(-1, 1, 2), (-1, 0, 1), *((1 - 2**n, 2**n - 1, 1) for n in range(1, 8)), (-128, 127, 1)]
)
def test_every_packing_convolves(low_high_step):
    generator = torch.Generator().manual_seed(0)
    low, high, step = low_high_step
    weight = low + step * torch.randint(0, (high - low) // step + 1, (17, 5, 3, 3), generator=generator)
    x = torch.randint(0, 256, (2, 5, 6, 7), generator=generator).to(torch.uint8)
    agree("conv2d", x, 100, weight.to(torch.int8), 8, [2, 1], [1, 2], [1, 1], 1, 2**30, *SUMS)


def test_pools_of_wide_codes_add_up_in_64_bits():
    x = torch.full((1, 1, 3, 3), 2**31 - 1, dtype=torch.int32)
    average = (torch.tensor([2**31 // 9]), torch.tensor([1]), torch.tensor([31]), 0, *OUTPUTS[torch.int32], torch.int32)
    assert int(agree("average_pool2d", x, 0, [3, 3], [1, 1], [0, 0], *average)) > 2**31 - 20


@few
@given(st.data())
def test_average_pools_equal_the_reference(data):
    draw = data.draw
    kernel, stride = draw(pairs), draw(pairs)
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    shape = (2, draw(st.integers(1, 19)), draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    x, zero_point, largest = activations(draw, shape)
    dtype, factor = draw(st.sampled_from([(x.dtype, 1), (torch.int16, 2**7), (torch.int32, 2**23)]))
    bound = largest * factor * kernel[0] * kernel[1]
    epilogue = requantization(draw, x.shape[1], bound)
    agree("average_pool2d", x.to(dtype) * factor, zero_point * factor, kernel, stride, padding, *epilogue)


@few
@given(st.data())
def test_max_pools_equal_the_reference(data):
    draw = data.draw
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(st.sampled_from([(1, 1), (2, 1)]))
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    x, _, _ = activations(draw, (2, draw(st.integers(1, 19)), *(draw(st.integers(5, 9)) for _ in range(2))))
    if x.dtype == torch.int8:
        x = draw(st.sampled_from([x, x.clamp(max=-1), x.to(torch.int16) * 2**8]))
    agree("max_pool2d", x, kernel, stride, padding, dilation)


@few
@given(st.data())
def test_weighted_sums_equal_the_reference(data):
    draw = data.draw
    shape = draw(st.sampled_from([(2, 5, 3, 3), (3, 7), (2, 3, 5), (1, 11, 10, 10)]))
    summands = [activations(draw, shape) for _ in range(draw(st.integers(1, 3)))]
    layouts = [torch.contiguous_format, torch.channels_last] if len(shape) == 4 else [torch.contiguous_format]
    inputs = [x.contiguous(memory_format=draw(st.sampled_from(layouts))) for x, _, _ in summands]
    multipliers = [draw(st.integers(-(2**21), 2**21)) for _ in inputs]
    bound = sum(largest * abs(m) for (_, _, largest), m in zip(summands, multipliers, strict=True))
    epilogue = requantization(draw, shape[1] if len(shape) == 4 else shape[-1], bound)
    agree("weighted_sum", inputs, [z for _, z, _ in summands], multipliers, *epilogue)


def test_products_that_would_saturate_the_tensor_cores_are_added_up_in_64_bits(monkeypatch):
    """140,000 products of -128, the zero code as a signed byte, and 127 do not fit 32 bits; their true sum is small."""
    monkeypatch.setattr(packing, "PLANE", 4096)  # fewer steps for the interpreter
    monkeypatch.setattr(backend, "PLANE", 4096)
    x = torch.zeros((1, 140_000), dtype=torch.uint8)
    weight = torch.full((1, 140_000), 127, dtype=torch.int8)
    assert packing.pack(weight).wide and not packing.pack(weight[:, :132_000]).wide
    one, half = torch.tensor([1]), torch.tensor([1])
    sums = agree("linear", x, 1, weight, 8, 127 * 140_000, one, half, one, 0, -(2**31), 2**31 - 1, torch.int32)
    assert int(sums) == -127 * 140_000 // 2


@laws
@given(st.data())
def test_packed_weights_are_those_packed_in_the_fewest_bits_of_1_2_4_8(data):
    weight, width = weights(data.draw, (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 300))))
    got = packing.pack(weight)
    planes = 8 // got.bits
    fields = unpack_bits(got.data.flatten(), got.bits, got.data.numel() * planes)
    rows = fields.view(len(weight), -1, packing.PLANE, planes).transpose(2, 3).flatten(1)
    assert torch.equal((got.first + got.step * rows)[:, : weight.shape[1]], weight.long())
    assert torch.equal(got.sums, weight.long().sum(1))
    assert got.bits <= {3: 4, 5: 8, 6: 8, 7: 8}.get(width, width)
    block = planes * packing.PLANE
    assert got.data.numel() * planes == len(weight) * -(-weight.shape[1] // block) * block


def test_binary_weights_take_one_bit():
    got = packing.pack(torch.tensor([[-1, 1] * 16], dtype=torch.int8))
    assert (got.bits, got.first, got.step) == (1, -1, 2)
    assert got.data.numel() == packing.PLANE


def test_a_weight_tensor_is_packed_once_and_again_when_it_changes_and_forgotten_when_it_goes():
    weight = torch.ones((2, 3), dtype=torch.int8)
    first = packing.packed(weight)
    assert packing.packed(weight) is first
    weight[0, 0] = -7
    assert packing.packed(weight) is not first
    assert packing.packed(weight).sums.tolist() == [-5, 3]
    count = len(packing._cache)
    del weight
    gc.collect()
    assert len(packing._cache) == count - 1


PLAIN = (torch.tensor([1]), torch.tensor([1]), torch.tensor([1]), 0, 0, 255, torch.uint8)
IMAGE, KERNEL = torch.zeros((1, 2, 3, 3), dtype=torch.uint8), torch.ones((2, 2, 3, 3), dtype=torch.int8)
CONV = ([1, 1], [0, 0], [1, 1], 1, 99)


def test_an_empty_batch_gives_an_empty_result():
    nothing = IMAGE[:0]
    agree("conv2d", nothing, 0, KERNEL, 8, *CONV, *PLAIN)
    agree("linear", nothing.flatten(1), 0, KERNEL.flatten(1), 8, 99, *PLAIN)
    agree("weighted_sum", [nothing, nothing], [0, 0], [1, 1], *PLAIN)
    assert backend.max_pool2d(place(nothing), [2, 2], [1, 1], [0, 0], [1, 1]).shape == (0, 2, 2, 2)
    assert backend.average_pool2d(place(nothing), 0, [2, 2], [1, 1], [0, 0], *PLAIN).shape == (0, 2, 2, 2)


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("conv2d", (IMAGE.short(), 0, KERNEL, 8, *CONV, *PLAIN), "reads uint8 or int8 codes, not torch.int16"),
        ("conv2d", (IMAGE, 256, KERNEL, 8, *CONV, *PLAIN), "zero point 256 is no code"),
        ("conv2d", (IMAGE, 0, KERNEL.short(), 8, *CONV, *PLAIN), "weights are int8 codes, not torch.int16"),
        ("conv2d", (IMAGE[:, :1], 0, KERNEL, 8, *CONV, *PLAIN), "do not fit codes"),
        ("conv2d", (IMAGE[:, :, :2], 0, KERNEL, 8, *CONV, *PLAIN), "larger than the padded"),
        ("linear", (IMAGE[0, 0], 0, KERNEL[0, 0, 0, None, :2], 8, 99, *PLAIN), "do not fit codes"),
        ("conv2d", (IMAGE, 0, KERNEL, 8, *CONV, torch.ones(3), *PLAIN[1:]), r"int64 of shape \(1,\) or \(2,\)"),
        ("weighted_sum", ([IMAGE, IMAGE[:, :1]], [0, 0], [1, 1], *PLAIN), "of one shape"),
        ("weighted_sum", ([IMAGE, IMAGE], [0], [1, 1], *PLAIN), "a zero point and a multiplier each"),
    ],
)
def test_what_the_schema_does_not_have_is_refused(operator, arguments, message):
    with pytest.raises(ModelError, match=message):
        getattr(backend, operator)(*place(arguments))


def test_tensors_of_a_cpu_are_refused_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ModelError, match="run on CUDA tensors, these are on cpu"):
        backend.conv2d(IMAGE, 0, KERNEL, 8, *CONV, *PLAIN)


def test_the_backend_has_the_operators_of_the_schema():
    assert get_backend(best_backend("cuda")) is backend
    for name in SCHEMAS:
        schema = [argument.name for argument in getattr(torch.ops.haqsearch, name).default._schema.arguments]
        ours = [p.name for p in inspect.signature(getattr(backend, name)).parameters.values() if p.name != "epilogue"]
        assert ours == schema[: len(ours)]
        assert schema[len(ours) :] in ([], "multiplier offset shift zero_point low high dtype".split())


def compiled(tmp_path, *options):
    """Rows of ``tests.kernels.triton_compile``, from a process without the interpreter."""
    pytest.importorskip("triton.backends.nvidia", reason="needs Triton's compiler for NVIDIA GPUs")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton_compile", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_and_products_run_on_int8_tensor_cores(tmp_path):
    rows = compiled(tmp_path)
    kernels = ("gemm", "window_sum", "window_max", "weighted_sum")
    assert {(row["kernel"], row["capability"]) for row in rows} == {(f"{kernel}_kernel", 80) for kernel in kernels}
    for row in rows:
        assert bool(row["products"]) == (row["kernel"] == "gemm_kernel"), row
        assert row["cubin"] > 0


@pytest.mark.slow
def test_every_packing_compiles_to_int8_tensor_cores(tmp_path):
    rows = [row for row in compiled(tmp_path, "all") if row["kernel"] == "gemm_kernel"]
    assert {(row["capability"], row["bits"]) for row in rows} == {(c, bits) for c in (80, 90) for bits in (1, 2, 4, 8)}
    assert {row["wide"] for row in rows} == {False, True}
    assert all(row["products"] for row in rows)
