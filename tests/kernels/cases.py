"""Drawn arguments of the operators of ``haqsearch.kernels.schema``: what every backend is compared with the oracle on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from haqsearch.kernels.reference import INT32_MAX, accumulator_bound

fills = st.sampled_from(["random", "random", "all max", "all min", "opposed"])
widths = st.integers(1, 8)


def codes(shape, low, high, fill, seed, dtype):
    """Codes within [low, high]; the extremes are where a saturating kernel is wrong."""
    if fill == "all max":
        return torch.full(shape, high, dtype=dtype)
    if fill == "all min":
        return torch.full(shape, low, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    if fill == "opposed":  # every code at one end or the other
        return torch.tensor([low, high], dtype=dtype)[torch.randint(0, 2, shape, generator=generator)]
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


@st.composite
def activations(draw, shape):
    """(codes of one to eight bits, uint8 or int8; their zero point)."""
    bits, signed = draw(widths), draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    dtype = torch.int8 if signed else torch.uint8
    zero_point = draw(st.sampled_from([0, low, high, (low + high) // 2]))
    return codes(shape, low, high, draw(fills), draw(st.integers(0, 999)), dtype), zero_point


@st.composite
def weights(draw, shape):
    """(codes of one to eight bits in two's complement, the width)."""
    bits = draw(widths)
    return codes(
        shape, -(2 ** (bits - 1)), max(2 ** (bits - 1) - 1, 0), draw(fills), draw(st.integers(0, 999)), torch.int8
    ), bits


@st.composite
def epilogues(draw, channels, largest):
    """The last seven arguments of an operator, for accumulators up to ``largest``: outputs neither all zero nor all clamped."""
    count = draw(st.sampled_from([1, channels]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    multiplier = torch.randint(2**30, 2**31, (count,), generator=generator)
    usual = 31 + max(int(largest).bit_length() - 7, 0)
    shift = torch.full((count,), min(max(usual + draw(st.integers(-8, 3)), 1), 62))
    limit = min(INT32_MAX, max(largest, 1))
    bias = torch.randint(-limit, limit + 1, (count,), generator=generator)
    dtype, low, high = draw(
        st.sampled_from(
            [(torch.uint8, 0, 255), (torch.int8, -128, 127), (torch.uint8, 0, 15), (torch.int16, -32768, 32767)]
        )
    )
    zero_point = draw(st.integers(low, high))
    return multiplier, bias * multiplier + (1 << (shift - 1)), shift, zero_point, low, high, dtype


sizes = st.sampled_from([1, 2, 3, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 100])
small = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    """Arguments of ``conv2d``."""
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 5), st.integers(1, 5))), draw(small), draw(small)
    if draw(st.booleans()):  # the shapes most networks have
        kernel, stride, dilation = (3, 3), draw(st.sampled_from([(1, 1), (2, 2)])), (1, 1)
    padding = draw(st.tuples(st.integers(0, kernel[0] // 2), st.integers(0, kernel[1] // 2)))
    kind = draw(st.sampled_from(["plain", "plain", "plain", "grouped", "depthwise"]))
    groups, inside, outside = {
        "plain": (1, draw(sizes), draw(sizes)),
        "grouped": (draw(st.integers(2, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 18))),
        "depthwise": (draw(sizes), 1, 1),
    }[kind]
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    image = [draw(st.integers(n, n + 9)) for n in least]
    x, zero_point = draw(activations((draw(st.integers(1, 3)), groups * inside, *image)))
    weight, bits = draw(weights((groups * outside, inside, *kernel)))
    bound = accumulator_bound(weight, None, 255)
    end = draw(epilogues(groups * outside, bound))
    return x, zero_point, weight, bits, stride, padding, dilation, groups, bound, *end


@st.composite
def products(draw):
    """Arguments of ``linear``."""
    features = draw(st.one_of(sizes, st.integers(1, 700)))
    x, zero_point = draw(activations((*draw(st.sampled_from([(1,), (2,), (5,), (40,), (2, 3)])), features)))
    weight, bits = draw(weights((draw(sizes), features)))
    bound = accumulator_bound(weight, None, 255)
    return x, zero_point, weight, bits, bound, *draw(epilogues(len(weight), bound))


@st.composite
def sums(draw):
    """Arguments of ``weighted_sum``."""
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from([(5,), (64,), (7, 3, 5), (16, 8, 8), (33, 2, 2)])))
    drawn = [draw(activations(shape)) for _ in range(draw(st.integers(1, 3)))]
    shift = draw(st.integers(16, 40))
    top = min(shift + 1, 32)
    multipliers = [draw(st.integers(2 ** (top - 10), 2**top - 1)) for _ in drawn]
    dtype, low, high = draw(st.sampled_from([(torch.uint8, 0, 255), (torch.int8, -128, 127), (torch.uint8, 0, 3)]))
    end = (torch.tensor([1]), torch.tensor([1 << (shift - 1)]), torch.tensor([shift]), draw(st.integers(low, high)))
    return [x for x, _ in drawn], [z for _, z in drawn], multipliers, *end, low, high, dtype


@st.composite
def averages(draw):
    """Arguments of ``average_pool2d``."""
    kernel, stride = draw(st.tuples(st.integers(1, 8), st.integers(1, 8))), draw(small)
    padding = draw(st.tuples(st.integers(0, kernel[0] // 2), st.integers(0, kernel[1] // 2)))
    image = [draw(st.integers(kernel[i], kernel[i] + 6)) for i in (0, 1)]
    x, zero_point = draw(activations((draw(st.integers(1, 3)), draw(sizes), *image)))
    return x, zero_point, kernel, stride, padding, *draw(epilogues(1, 255 * kernel[0] * kernel[1]))


@st.composite
def maxima(draw):
    """Arguments of ``max_pool2d``."""
    kernel, stride, dilation = draw(small), draw(small), draw(small)
    padding = draw(st.tuples(st.integers(0, kernel[0] // 2), st.integers(0, kernel[1] // 2)))
    image = [draw(st.integers(1 + dilation[i] * (kernel[i] - 1), 12)) for i in (0, 1)]
    x, _ = draw(activations((draw(st.integers(1, 3)), draw(sizes), *image)))
    return x, kernel, stride, padding, dilation


OPERATORS = {
    "conv2d": convolutions(),
    "linear": products(),
    "weighted_sum": sums(),
    "average_pool2d": averages(),
    "max_pool2d": maxima(),
}
