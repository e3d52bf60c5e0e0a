"""Kernels of one purpose: packed linear layers, bit planes and tables, tiles, 3 x 3 depthwise; equal to the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.kernels import reference
from haqsearch.kernels.reference import accumulator_bound

from .cases import activations, codes, epilogues

native = pytest.importorskip("haqsearch.kernels.native", reason="the native kernels are not built")
few = settings(deadline=None, max_examples=25)
SIMD = [name for name in native.isas() if name in {"avx2", "avx512", "amx"}]


@pytest.fixture(params=SIMD)
def isa(request, monkeypatch):
    monkeypatch.setenv("HAQSEARCH_ISA", request.param)
    return request.param


@st.composite
def weights(draw, shape):
    """Codes of few values: all of a width, the symmetric ones, or any two."""
    bits = draw(st.integers(1, 4))
    top = max(2 ** (bits - 1) - 1, 0)
    low, high = draw(st.sampled_from([(-(2 ** (bits - 1)), top), (-top, top), (-1, 0), (0, 1)]))
    fill = draw(st.sampled_from(["random", "random", "opposed", "all max", "all min"]))
    weight = codes(shape, low, high, fill, draw(st.integers(0, 999)), torch.int8)
    return weight * 2 + 1 if (low, high) == (-1, 0) and draw(st.booleans()) else weight  # -1 and 1


@st.composite
def products(draw):
    features, outputs = draw(st.integers(1, 300)), draw(st.sampled_from([64, 128, 129, 200, 300]))
    x, zero_point = draw(activations((*draw(st.sampled_from([(1,), (2,), (3, 2), (8,)])), features)))
    weight = draw(weights((outputs, features)))
    bound = accumulator_bound(weight, None, 255)
    return x, zero_point, weight, 5, bound, *draw(epilogues(outputs, bound))


@st.composite
def convolutions(draw):
    inside, outside = (draw(st.sampled_from([32, 33, 64, 65, 100, 128, 131])) for _ in "io")
    kernel, dilation = draw(st.sampled_from([((3, 3), (1, 1)), ((1, 1), (1, 1)), ((2, 3), (1, 2))]))
    stride, padding = (
        draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])),
        (draw(st.integers(0, 1)), draw(st.integers(0, 1))),
    )
    bits, size = (
        draw(st.integers(1, 3)),
        (draw(st.integers(1, 3)), inside, draw(st.integers(5, 9)), draw(st.integers(5, 9))),
    )
    x = codes(
        size, 0, 2**bits - 1, draw(st.sampled_from(["random", "all max"])), draw(st.integers(0, 999)), torch.uint8
    )
    weight = draw(weights((outside, inside, *kernel)))
    bound = accumulator_bound(weight, None, 255)
    end = draw(epilogues(outside, bound))
    return x, draw(st.integers(0, 2**bits - 1)), weight, 5, stride, padding, dilation, 1, bound, *end


@st.composite
def strided(draw):
    """3 x 3 with stride 2, 8 bits: images that tiles of four by four outputs fill, and that they do not."""
    inside, outside = (draw(st.sampled_from([12, 16, 17, 33])) for _ in "io")
    size = (draw(st.integers(1, 2)), inside, *(draw(st.sampled_from([1, 6, 7, 8, 9, 13, 16, 17, 31])) for _ in "hw"))
    x, zero_point = draw(activations(size))
    fill = draw(st.sampled_from(["random", "opposed", "all max", "all min"]))
    weight = codes((outside, inside, 3, 3), -128, 127, fill, draw(st.integers(0, 999)), torch.int8)
    bound = accumulator_bound(weight, None, 255)
    return x, zero_point, weight, 8, (2, 2), (1, 1), (1, 1), 1, bound, *draw(epilogues(outside, bound))


@st.composite
def blocks(draw):
    """Weights of 4 to 7 bits, whose sums fit int16 for a few steps: where they end, and where they start, matters."""
    inside, outside, bits = (
        draw(st.sampled_from([8, 9, 16, 40, 64])),
        draw(st.sampled_from([5, 16, 33])),
        draw(st.integers(4, 7)),
    )
    fill = draw(st.sampled_from(["random", "random", "opposed", "all max", "all min"]))
    kernel, low = draw(st.sampled_from([1, 3])), -(2 ** (bits - 1))
    x, zero_point = draw(activations((draw(st.integers(1, 2)), inside, 5, draw(st.sampled_from([1, 5, 11])))))
    weight = codes((outside, inside, kernel, kernel), low, -low - 1, fill, draw(st.integers(0, 999)), torch.int8)
    bound, padding = accumulator_bound(weight, None, 255), (kernel // 2, kernel // 2)
    return x, zero_point, weight, bits, (1, 1), padding, (1, 1), 1, bound, *draw(epilogues(outside, bound))


@st.composite
def edges(draw):
    """Where tiles of 16 outputs, 16 channels and 64 bytes end: lines, strips of rows, and kernel rows of many lengths."""
    inside, outside = (
        draw(st.sampled_from([3, 8, 16, 21, 22, 32, 33, 43, 64, 65, 128])),
        draw(st.sampled_from([1, 15, 16, 17, 32, 33, 48, 65])),
    )
    kernel = draw(st.sampled_from([(3, 3), (3, 3), (1, 1), (5, 1), (2, 3), (1, 4)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (4, 1)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 2), (3, 1)]))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    height, width = least[0] + draw(st.sampled_from([0, 1, 4, 30])), least[1] + draw(st.integers(0, 40))
    x, zero_point = draw(activations((draw(st.integers(1, 3)), inside, height, width)))
    fill = draw(st.sampled_from(["random", "random", "opposed", "all max", "all min"]))
    weight = codes((outside, inside, *kernel), -128, 127, fill, draw(st.integers(0, 999)), torch.int8)
    bound = accumulator_bound(weight, None, 255)
    return x, zero_point, weight, 8, stride, padding, dilation, 1, bound, *draw(epilogues(outside, bound))


@st.composite
def matrices(draw):
    """Linear layers of up to more rows than are taken together."""
    rows, features = draw(st.sampled_from([1, 9, 31, 33, 49, 600])), draw(st.sampled_from([24, 63, 64, 65, 130, 320]))
    x, zero_point = draw(activations((1, rows, features)))
    weight = codes((draw(st.sampled_from([10, 32, 40])), features), -128, 127, "random", rows, torch.int8)
    bound = accumulator_bound(weight, None, 255)
    return x, zero_point, weight, 8, bound, *draw(epilogues(len(weight), bound))


@st.composite
def depthwise(draw):
    """3 x 3: the widths at which rows are cut, channels that fill a register and that do not, every width of weights."""
    channels, width = (
        draw(st.sampled_from([2, 7, 16, 17, 32, 40, 64])),
        draw(st.sampled_from([1, 2, 3, 8, 64, 65, 130])),
    )
    size = (draw(st.integers(1, 2)), channels, draw(st.integers(1, 4)), width)
    x, zero_point = draw(activations(size))
    low = -(2 ** draw(st.integers(0, 7)))
    fill = draw(st.sampled_from(["random", "random", "opposed", "all max", "all min"]))
    weight = codes((channels, 1, 3, 3), low, max(-low - 1, 1), fill, draw(st.integers(0, 999)), torch.int8)
    stride, bound = draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])), accumulator_bound(weight, None, 255)
    return x, zero_point, weight, 8, stride, (1, 1), (1, 1), channels, bound, *draw(epilogues(channels, bound))


def test_depthwise_convolutions_equal_the_reference(isa):
    @few
    @given(depthwise())
    def law(arguments):
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))

    law()


@pytest.mark.parametrize("value", [-128, -127, -14, -8, 7, 8, 14, 15, 127])
def test_depthwise_sums_of_extremes_overflow_nothing(isa, value):
    weight = torch.full((33, 1, 3, 3), value, dtype=torch.int8)
    x = torch.full((1, 33, 4, 5), 255, dtype=torch.uint8)
    bound = accumulator_bound(weight, None, 255)
    multiplier, shift = torch.tensor([2**38 // bound]), torch.tensor([31])  # the largest sum is 128 codes
    constants = multiplier, 1 << (shift - 1), shift, 150 if value < 0 else 0, 0, 255, torch.uint8
    arguments = x, 0, weight, 8, (1, 1), (1, 1), (1, 1), 33, bound, *constants
    assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))


def test_linear_layers_equal_the_reference(isa):
    @few
    @given(products())
    def law(arguments):
        assert torch.equal(native.linear(*arguments), reference.linear(*arguments))

    law()


def test_matrices_equal_the_reference(isa):
    @few
    @given(matrices())
    def law(arguments):
        assert torch.equal(native.linear(*arguments), reference.linear(*arguments))

    law()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("first", "inside", "of"), [(0, 64, 128), (64, 64, 192), (5, 40, 64), (3, 70, 75)])
def test_some_channels_of_a_tensor_equal_the_reference(isa, first, inside, of, kernel):
    x = codes((2, of, 9, 20), 0, 255, "random", 0, torch.uint8)
    weight = codes((33, inside, kernel, kernel), -128, 127, "random", 1, torch.int8)
    window, size = ((1, 1), (kernel // 2, kernel // 2), (1, 1)), (9, 20)
    constants = torch.tensor([2**30]), torch.tensor([2**44]), torch.tensor([45]), 100, 0, 255
    network = native.Network()
    source, target = network.slot((of, *size), torch.uint8, 7), network.slot((33, *size), torch.uint8, 0)
    part = native.Slot(source.index, (inside, *size), 1, 7, 0)
    network.pad(source, native.window_border(size, weight.shape[2:], *window))
    network.take(0, source)
    op = native.conv_op(part, 7, (0, 255), weight, 8, window, 1, native.epilogue(target, 33, *constants))
    network.step(op, [native.Box(source, 0, 0, first, *size, inside)], native.whole(target))
    network.give(0, target)
    bound = accumulator_bound(weight, None, 255)
    want = reference.conv2d(x[:, first : first + inside], 7, weight, 8, *window, 1, bound, *constants, torch.uint8)
    assert torch.equal(network.run([x])[0], want)


@pytest.mark.parametrize("features", [1, 1408, 1409, 2823, 4224, 4225, 4500])  # where blocks of int16 sums end
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_long_rows_of_extremes_overflow_nothing(isa, bits, features):
    top = 2**bits - 1
    weight = torch.full((130, features), top // 2, dtype=torch.int8)
    weight[0], weight[1, ::2] = -(top + 1) // 2, -(top + 1) // 2
    weight[2] = torch.arange(features) % (top + 1) - (top + 1) // 2  # every code: two of them would take one bit
    x = torch.full((2, features), 255, dtype=torch.uint8)
    x[1, ::3] = 0
    shift = torch.full((130,), 31 + max((features * 255 * (top + 1)).bit_length() - 16, 0))
    constants = torch.full((130,), 2**30), 1 << (shift - 1), shift, 0, -32768, 32767, torch.int16
    arguments = x, 0, weight, 5, accumulator_bound(weight, None, 255), *constants
    assert torch.equal(native.linear(*arguments), reference.linear(*arguments))


def test_convolutions_equal_the_reference(isa):
    @few
    @given(convolutions())
    def law(arguments):
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))

    law()


@pytest.mark.parametrize("cases", [strided, blocks, edges])
def test_sums_of_many_bits_equal_the_reference(isa, cases):
    @few
    @given(cases())
    def law(arguments):
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))

    law()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_packed_weights_take_their_bits_and_no_more(isa, bits):
    network = native.Network()
    x, y = network.slot((512,), torch.uint8, 0), network.slot((256,), torch.uint8, 0)
    weight = codes((256, 512, 1, 1), -(2 ** (bits - 1)), max(2 ** (bits - 1) - 1, 0), "random", 0, torch.int8)
    one = torch.tensor([1])
    end = native.epilogue(y, 256, one, one, one, 0, 0, 255)
    op = native.conv_op(x, 0, (0, 255), weight, bits, ((1, 1), (0, 0), (1, 1)), 1, end, few_rows=True)
    assert op.packed_bytes == 256 * 512 * bits // 8
