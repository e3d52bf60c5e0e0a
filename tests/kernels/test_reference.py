from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import ModelError
from haqsearch.kernels import BACKENDS, get_backend, reference
from haqsearch.kernels.reference import INT32_MAX, accumulator_bound, exact_dtype
from haqsearch.kernels.schema import SCHEMAS

from . import oracle
from .laws import laws

widths = st.integers(1, 8)
fills = st.sampled_from(["random", "random", "all max", "all min", "opposed"])
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def _codes(shape, low, high, fill, seed):
    """uint8 or int8 codes; the extremes are where a saturating kernel is wrong."""
    dtype = torch.uint8 if low == 0 else torch.int8
    if fill == "all max":
        return torch.full(shape, high, dtype=dtype)
    if fill == "all min":
        return torch.full(shape, low, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    if fill == "opposed":  # every code at one end or the other
        ends = torch.tensor([low, high], dtype=dtype)
        return ends[torch.randint(0, 2, shape, generator=generator)]
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


def _weight(draw, shape):
    limit = max(2 ** (draw(widths) - 1) - 1, 1)
    return _codes(shape, -limit, limit, draw(fills), draw(st.integers(0, 999)))


def _activation(draw, shape):
    top = 2 ** draw(widths) - 1
    x = _codes(shape, 0, top, draw(fills), draw(st.integers(0, 999)))
    return x, draw(st.sampled_from([0, 0, 1, top // 2, top])), top


@st.composite
def convolutions(draw):
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    kind = draw(st.sampled_from(["plain", "grouped", "depthwise", "multiplied"]))
    groups, inside, outside = {
        "plain": (1, draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        "grouped": (draw(st.integers(2, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "depthwise": (draw(st.integers(1, 9)), 1, 1),
        "multiplied": (draw(st.integers(1, 4)), 1, 2),
    }[kind]
    sizes = [draw(st.integers(max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]), 9)) for i in (0, 1)]
    x, zero_point, top = _activation(draw, (draw(st.integers(1, 3)), groups * inside, *sizes))
    return x, zero_point, top, _weight(draw, (groups * outside, inside, *kernel)), stride, padding, dilation, groups


@settings(laws, max_examples=100)
@given(convolutions())
def test_convolution_equals_integer_loops(case):
    x, zero_point, top, weight, stride, padding, dilation, groups = case
    bound = accumulator_bound(weight, None, max(zero_point, top - zero_point))
    got = reference.conv2d_sums(x, zero_point, weight, list(stride), list(padding), list(dilation), groups, bound)
    assert got.dtype == torch.int64
    assert np.array_equal(got.numpy(), oracle.conv2d(x.numpy(), zero_point, weight.numpy(), *case[4:]))
    assert int(got.abs().max()) <= bound


@laws
@given(convolutions())
def test_float64_gives_the_same_as_float32(case):
    x, zero_point, top, weight, *geometry, groups = case
    bound = accumulator_bound(weight, None, max(zero_point, top - zero_point))
    lists = [list(g) for g in geometry]
    small = reference.conv2d_sums(x, zero_point, weight, *lists, groups, bound)
    assert torch.equal(small, reference.conv2d_sums(x, zero_point, weight, *lists, groups, 2**40))


@st.composite
def products(draw):
    features = draw(st.integers(1, 300))
    x, zero_point, top = _activation(draw, (*draw(st.sampled_from([(1,), (5,), (2, 3)])), features))
    return x, zero_point, top, _weight(draw, (draw(st.integers(1, 9)), features))


@laws
@given(products())
def test_linear_equals_integer_products(case):
    x, zero_point, top, weight = case
    bound = accumulator_bound(weight, None, max(zero_point, top - zero_point))
    got = reference.linear_sums(x, zero_point, weight, bound)
    exact = (x.numpy().astype(np.int64) - zero_point) @ weight.numpy().astype(np.int64).T
    assert got.dtype == torch.int64
    assert np.array_equal(got.numpy(), exact)
    assert int(got.abs().max()) <= bound


@laws
@given(products(), st.randoms(), st.integers(-1000, 1000))
def test_no_partial_sum_in_any_order_exceeds_the_bound(case, random, bias):
    x, zero_point, top, weight = case
    b = torch.full((len(weight),), bias)
    bound = accumulator_bound(weight, b, max(zero_point, top - zero_point))
    order = random.sample(range(weight.shape[1]), weight.shape[1])
    row = x.reshape(-1, x.shape[-1])[0].to(torch.int64) - zero_point
    partial = (weight.to(torch.int64) * row)[:, order].cumsum(1)
    assert int(partial.abs().max()) <= bound
    assert int((partial + bias).abs().max()) <= bound


@laws
@given(products())
def test_the_bound_is_reached_by_the_worst_input(case):
    """Signed inputs of largest magnitude, each with the sign of its weight: the bound is no larger than it must be."""
    _, _, top, weight = case
    worst = (weight.to(torch.int64).sign() * top * weight.to(torch.int64)).sum(1).max()
    assert accumulator_bound(weight, None, top) == int(worst)
    bias = torch.full((len(weight),), -7)
    assert accumulator_bound(weight, bias, top) == int(worst) + 7


def test_float32_is_used_below_2_to_the_24_and_float64_from_there_on():
    assert exact_dtype(2**24 - 1) == torch.float32
    assert exact_dtype(2**24) == torch.float64
    assert exact_dtype(2**24 + 1) == torch.float64
    assert exact_dtype(0, torch.device("cpu")) == torch.float32
    assert exact_dtype(0, torch.device("cuda")) == torch.float64


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_rules_float32_out(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert exact_dtype(1) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_float32_is_wrong_just_above_its_limit_and_the_kernel_is_right(op):
    """255 * 127 * 518 + 255 * 7 + 2 = 2**24 + 1: the first integer that float32 does not have."""
    x = torch.tensor([[255] * 519 + [2]], dtype=torch.uint8)
    weight = torch.tensor([[127] * 518 + [7, 1]], dtype=torch.int8)
    bound = accumulator_bound(weight, None, 255)
    assert bound > 2**24
    if op == "linear":
        in_float32 = F.linear(x.float(), weight.float())
        got = reference.linear_sums(x, 0, weight, bound)
    else:
        x, weight = x.view(1, -1, 1, 1), weight.view(1, -1, 1, 1)
        in_float32 = F.conv2d(x.float(), weight.float())
        got = reference.conv2d_sums(x, 0, weight, [1, 1], [0, 0], [1, 1], 1, bound)
    assert int(in_float32) != 2**24 + 1
    assert int(got) == 2**24 + 1


def test_the_largest_accumulator_is_exact():
    """Sums up to int32's end: 2**31 - 1 from 66,311 products of the largest codes and a remainder."""
    n, rest = divmod(INT32_MAX, 255 * 127)
    codes = [255] * n + [1] * (rest // 127) + [1]
    weight = [127] * n + [127] * (rest // 127) + [rest % 127]
    x, w = torch.tensor([codes], dtype=torch.uint8), torch.tensor([weight], dtype=torch.int8)
    assert reference.linear_sums(x, 0, w, accumulator_bound(w, None, 255)).tolist() == [[INT32_MAX]]
    assert reference.linear_sums(x, 0, -w, accumulator_bound(w, None, 255)).tolist() == [[-INT32_MAX]]


@settings(laws, max_examples=20)
@given(convolutions(), products())
def test_the_number_of_threads_does_not_matter(case, product):
    x, zero_point, top, weight, *geometry, groups = case
    bound = accumulator_bound(weight, None, max(zero_point, top - zero_point))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (
                    reference.conv2d_sums(x, zero_point, weight, *[list(g) for g in geometry], groups, bound),
                    reference.linear_sums(product[0], product[1], product[3], 2**23),
                )
            )
    finally:
        torch.set_num_threads(before)
    for (conv, linear), (conv_next, linear_next) in itertools.pairwise(results):
        assert torch.equal(conv, conv_next)
        assert torch.equal(linear, linear_next)


@laws
@given(convolutions())
def test_the_codes_given_are_left_alone(case):
    x, zero_point, _, weight, *geometry, groups = case
    before = x.clone(), weight.clone()
    reference.conv2d_sums(x, zero_point, weight, *[list(g) for g in geometry], groups, 2**30)
    reference.weighted_sums([x, x], [zero_point, 0], [3, 5])
    assert torch.equal(x, before[0]) and torch.equal(weight, before[1])


@st.composite
def pools(draw):
    kernel, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    x, zero_point, _ = _activation(draw, (2, draw(st.integers(1, 5)), *(draw(st.integers(3, 9)) for _ in range(2))))
    return x, zero_point, kernel, stride, padding


@laws
@given(pools())
def test_window_sum_equals_integer_loops(case):
    x, zero_point, kernel, stride, padding = case
    got = reference.window_sums(x, zero_point, list(kernel), list(stride), list(padding))
    exact = oracle.pool(x.numpy().astype(np.int64) - zero_point, 0, np.sum, kernel, stride, padding)
    assert got.dtype == torch.int64
    assert np.array_equal(got.numpy(), exact)


@laws
@given(pools(), st.booleans())
def test_max_pool_equals_integer_loops(case, signed):
    x, _, kernel, stride, padding = case
    if signed:
        x = x.to(torch.int16) * 257 - 2**15  # 16-bit codes, both ends
    got = reference.max_pool2d(x, list(kernel), list(stride), list(padding), [1, 1])
    assert got.dtype == x.dtype
    assert np.array_equal(got.numpy(), oracle.pool(x.numpy(), -(2**40), np.max, kernel, stride, padding))


@laws
@given(pools())
def test_dilated_max_pool_equals_integer_loops(case):
    x, _, kernel, stride, _ = case
    x = F.pad(x, (2, 2, 2, 2))
    got = reference.max_pool2d(x, list(kernel), list(stride), [0, 0], [2, 2])
    assert np.array_equal(got.numpy(), oracle.pool(x.numpy(), 0, np.max, kernel, stride, (0, 0), (2, 2)))


@laws
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 999), st.integers(-(2**31) + 1, 2**31 - 1)),
        min_size=1,
        max_size=4,
    )
)
def test_weighted_sum_equals_integer_arithmetic(summands):
    inputs = [_codes((2, 3), 0, 255, "random", seed) for _, seed, _ in summands]
    zero_points, multipliers = [z for z, _, _ in summands], [m for _, _, m in summands]
    got = reference.weighted_sums(inputs, zero_points, multipliers)
    columns = zip(*(t.flatten().tolist() for t in inputs), strict=True)
    exact = [sum((q - z) * m for q, z, m in zip(c, zero_points, multipliers, strict=True)) for c in columns]
    assert got.dtype == torch.int64
    assert got.flatten().tolist() == exact


int32 = st.integers(-INT32_MAX, INT32_MAX) | st.sampled_from([INT32_MAX, -INT32_MAX, 0])


@st.composite
def epilogues(draw):
    channels = draw(st.integers(1, 4))
    per_channel = [(draw(st.integers(2**30, 2**31 - 1)), draw(st.integers(1, 62))) for _ in range(channels)]
    acc = [[draw(int32) for _ in range(channels)] for _ in range(2)]
    sums = [[draw(int32) for _ in range(channels)] for _ in range(2)]
    # acc + bias is an int32 as well: lowering has seen to it.
    bias = [draw(st.integers(-1000, 1000)) for _ in range(channels)]
    acc = [[min(max(a, -INT32_MAX + 1000), INT32_MAX - 1000) for a in row] for row in acc + sums]
    low, high = sorted([draw(st.integers(0, 255)), draw(st.integers(0, 255))])
    return acc, bias, per_channel, draw(st.integers(0, 255)), low, high


@laws
@given(epilogues(), st.booleans())
def test_epilogue_equals_exact_fractions(case, image):
    acc, bias, channels, zero_point, low, high = case
    m0, shift = (torch.tensor(column) for column in zip(*channels, strict=True))
    offset = torch.tensor(bias) * m0 + (torch.ones_like(shift) << (shift - 1))
    x = torch.tensor(acc)
    got = reference.epilogue(
        x.view(*x.shape, 1, 1) if image else x, offset, m0, shift, zero_point, low, high, torch.uint8
    )
    exact = [
        [oracle.epilogue(a, b, m, s, zero_point, low, high) for a, b, (m, s) in zip(row, bias, channels, strict=True)]
        for row in acc
    ]
    assert got.dtype == torch.uint8
    assert got.reshape(x.shape).tolist() == exact


def test_one_multiplier_serves_every_channel_of_an_image():
    acc = torch.arange(-8, 8).view(1, 2, 2, 4)
    half, one = torch.tensor([2]), torch.tensor([1])
    got = reference.epilogue(acc, half, one, torch.tensor([2]), 0, -128, 127, torch.int8)
    assert got.flatten().tolist() == [-2, -2, -1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_backend_has_every_kernel():
    for name in BACKENDS:
        try:
            backend = get_backend(name)
        except ModelError as error:
            assert "cannot be loaded here" in str(error)
            assert name != "reference"
            continue
        for operator in SCHEMAS:
            assert callable(getattr(backend, operator))
    assert get_backend() is reference


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="no kernel backend 'refrence'; known: reference"):
        get_backend("refrence")
