"""Every native instruction set equals the reference, to the last bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import ModelError
from haqsearch.kernels import reference
from haqsearch.kernels.schema import SCHEMAS

from .cases import OPERATORS, convolutions

native = pytest.importorskip("haqsearch.kernels.native", reason="the native kernels are not built")
many = settings(deadline=None, max_examples=60)


@pytest.fixture(params=native.isas())
def isa(request, monkeypatch):
    monkeypatch.setenv("HAQSEARCH_ISA", request.param)
    return request.param


def test_every_operator_is_tested():
    assert OPERATORS.keys() == SCHEMAS.keys()


@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_the_reference(isa, operator):
    @many
    @given(OPERATORS[operator])
    def law(arguments):
        got, want = getattr(native, operator)(*arguments), getattr(reference, operator)(*arguments)
        assert got.dtype == want.dtype
        assert torch.equal(got, want)

    law()


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_the_reference_often(isa, operator):
    @settings(deadline=None, max_examples=3000)
    @given(OPERATORS[operator])
    def law(arguments):
        assert torch.equal(getattr(native, operator)(*arguments), getattr(reference, operator)(*arguments))

    law()


def test_the_number_of_threads_does_not_matter(isa):
    @settings(deadline=None, max_examples=20)
    @given(convolutions(), st.integers(2, 4))
    def law(arguments, threads):
        before = torch.get_num_threads()
        one = native.conv2d(*arguments)
        try:
            torch.set_num_threads(threads)
            assert torch.equal(native.conv2d(*arguments), one)
        finally:
            torch.set_num_threads(before)

    law()


def _layer(x, weight, bits=8, bound=0):
    end = (torch.tensor([2**30]), torch.tensor([2**39]), torch.tensor([40]), 0, 0, 255, torch.uint8)
    return (x, 0, weight, bits, (1, 1), (1, 1), (1, 1), 1, bound, *end)


def test_memory_that_is_not_contiguous_or_not_aligned(isa):
    base = torch.arange(7 + 2 * 5 * 9 * 9, dtype=torch.int64).remainder(251).to(torch.uint8)
    unaligned = base[7:].view(2, 5, 9, 9)
    strided = torch.arange(2 * 10 * 9 * 18).remainder(251).to(torch.uint8).view(2, 10, 9, 18)[:, ::2, :, ::2]
    weight = torch.arange(-60, 12 * 5 * 9 - 60).remainder(255).sub(127).to(torch.int8).view(12, 5, 3, 3)
    for x in (unaligned, strided, unaligned.to(memory_format=torch.channels_last)):
        arguments = _layer(x, weight, bound=2**23)
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))
        transposed = _layer(x, weight.transpose(2, 3), bound=2**23)
        assert torch.equal(native.conv2d(*transposed), reference.conv2d(*transposed))


def test_a_batch_of_nothing(isa):
    weight = torch.ones(4, 3, 3, 3, dtype=torch.int8)
    assert native.conv2d(*_layer(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), weight)).shape == (0, 4, 8, 8)


def test_full_range_is_exact_where_int16_sums_saturate(isa):
    """255 * 127 * 2 leaves int16: engines that add pairs of products in int16 are wrong here."""
    x = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8)
    for value in (127, -128):
        arguments = _layer(x, torch.full((32, 64, 3, 3), value, dtype=torch.int8), bound=2**26)
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))


@pytest.mark.parametrize("bias", [0, -17_000, 2**29])
@pytest.mark.parametrize("zero_point", [0, 3, 255])
def test_every_accumulator_becomes_its_code(isa, bias, zero_point):
    """Sums with hardly a gap from -1000 to 33,000, and so on both sides of every step; shifts below and above 32."""
    image = torch.arange(65536).view(256, 256)
    x = torch.stack([image // 256, image % 256])[None].to(torch.uint8)
    generator = torch.Generator().manual_seed(zero_point)
    multiplier = torch.randint(2**30, 2**31, (18,), generator=generator)
    weight = torch.stack([torch.full((18,), 127), torch.arange(18) % 9 - 4], 1).to(torch.int8).view(18, 2, 1, 1)
    for shift in (31, 32, 33, 36, 40, 45):
        shifts = torch.full((18,), shift)
        offset = (bias - 16384) * multiplier + (1 << (shifts - 1))
        end = (multiplier, offset, shifts, zero_point, 0, 255, torch.uint8)
        arguments = (x, 0, weight, 8, (1, 1), (0, 0), (1, 1), 1, 2**16, *end)
        assert torch.equal(native.conv2d(*arguments), reference.conv2d(*arguments))


def test_an_accumulator_beyond_int32_is_refused(isa):
    x = torch.full((1, 70_000), 255, dtype=torch.uint8)
    weight = torch.full((1, 70_000), 127, dtype=torch.int8)
    end = (torch.tensor([2**30]), torch.tensor([2**61]), torch.tensor([62]), 0, 0, 255, torch.uint8)
    with pytest.raises(ModelError, match="accumulator can leave int32"):
        native.linear(x, 0, weight, 8, 2**31, *end)


def test_other_types_are_refused(isa):
    weight = torch.ones(4, 3, 3, 3, dtype=torch.int8)
    with pytest.raises(ModelError, match="float32"):
        native.conv2d(*_layer(torch.zeros(1, 3, 8, 8), weight))
    with pytest.raises(ModelError, match="int32"):
        native.conv2d(*_layer(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), weight.int()))
    with pytest.raises(ModelError, match="width"):
        native.conv2d(*_layer(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), weight, bits=9))
    with pytest.raises(ModelError, match="channels"):
        native.conv2d(*_layer(torch.zeros(1, 5, 8, 8, dtype=torch.uint8), weight))
    with pytest.raises(ModelError, match="window"):
        native.conv2d(*_layer(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 3, 11, 3, dtype=torch.int8)))


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("HAQSEARCH_ISA", "sse9")
    with pytest.raises(ModelError, match=r"HAQSEARCH_ISA='sse9': this machine has .*portable"):
        native.isa()


IMAGE, KERNEL = torch.zeros((2, 2, 3, 3), dtype=torch.uint8), torch.ones((2, 2, 3, 3), dtype=torch.int8)
CONV = ((1, 1), (0, 0), (1, 1), 1, 99)
PLAIN = (torch.tensor([1]), torch.tensor([1]), torch.tensor([1]), 0, 0, 255, torch.uint8)


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("conv2d", (IMAGE.short(), 0, KERNEL, 8, *CONV, *PLAIN), "take codes in uint8 or int8, not int16"),
        ("conv2d", (IMAGE[0], 0, KERNEL, 8, *CONV, *PLAIN), r"images of shape \(B, C, H, W\), not \(2, 3, 3\)"),
        ("conv2d", (IMAGE, 256, KERNEL, 8, *CONV, *PLAIN), "input codes lie in 0..255"),
        ("conv2d", (IMAGE, 0, KERNEL, 0, *CONV, *PLAIN), "width of 1 to 8 bits, not torch.int8 of 0"),
        ("conv2d", (IMAGE, 0, 8 * KERNEL, 4, *CONV, *PLAIN), r"weights of 4 bits lie in -8\.\.7"),
        ("conv2d", (IMAGE[:, :1], 0, KERNEL, 8, *CONV, *PLAIN), "weights for 2 input channels, but the input has 1"),
        ("conv2d", (IMAGE[:, :, :2], 0, KERNEL, 8, *CONV, *PLAIN), "larger than its padded image"),
        ("conv2d", (IMAGE, 0, KERNEL, 8, (0, 1), *CONV[1:], *PLAIN), "strides and dilations are at least 1"),
        ("conv2d", (IMAGE, 0, KERNEL, 8, *CONV, torch.ones(3).long(), *PLAIN[1:]), "one for each output channel"),
        ("linear", (IMAGE[0, 0], 0, KERNEL[0, 0, :, :2], 8, 99, *PLAIN), "weights for 2 input channels, but the input"),
        ("weighted_sum", ([IMAGE, IMAGE[:, :1]], [0, 0], [1, 1], *PLAIN), "inputs of one shape"),
        ("weighted_sum", ([IMAGE, IMAGE[:1]], [0, 0], [1, 1], *PLAIN), "inputs of one shape"),
        ("weighted_sum", ([IMAGE, IMAGE], [0], [1, 1], *PLAIN), "a zero point and a multiplier each"),
        ("average_pool2d", (IMAGE, 0, (4, 4), (1, 1), (0, 0), *PLAIN), "larger than its padded image"),
        ("max_pool2d", (IMAGE, (2, 2), (1, 0), (0, 0), (1, 1)), "strides and dilations are at least 1"),
    ],
)
def test_what_would_read_beyond_a_tensor_or_has_no_result_is_refused(operator, arguments, message):
    with pytest.raises(ModelError, match=message):
        getattr(native, operator)(*arguments)


@pytest.mark.parametrize(
    "x", [IMAGE.float(), IMAGE.char(), IMAGE[:, :, :2], IMAGE[:, :1], IMAGE[0]], ids=lambda x: f"{x.dtype} {[*x.shape]}"
)
def test_a_network_takes_what_it_was_built_for(x):
    network = native.Network()
    source, target = (network.slot((2, 3, 3), torch.uint8, 0) for _ in range(2))
    network.take(0, source)
    network.step(native.copy_op(), [native.whole(source)], native.whole(target))
    network.give(0, target)
    assert torch.equal(network.run([IMAGE])[0], IMAGE)
    with pytest.raises(ModelError, match=r"input 0 of these kernels is torch.uint8 of shape \(\d, 2, 3, 3\), not"):
        network.run([x])
