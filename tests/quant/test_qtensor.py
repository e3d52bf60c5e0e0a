"""Laws of every number format on tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from haqsearch.quant import QTensor, encode
from haqsearch.quant.families import FAMILIES
from haqsearch.quant.families.affine import code_range
from haqsearch.spec import Format
from haqsearch.spec.formats import KINDS

from .laws import laws
from .tensors import EVERY, every, same, seeds, shapes, suffixes, tensor, widths


def error(x, format):
    return float((encode(x, format).dequantize().double() - x.double()).square().mean())


def steps(q):
    """Distance of neighbouring codes of an affine tensor, at every element."""
    scale, (rows, length) = q.parameters["scale"], q.codes.reshape(q.shape[0] if len(q.shape) > 1 else 1, -1).shape
    wide = scale.repeat_interleave(q.format.group or length, 1)[:, :length].expand(rows, length)
    return wide.reshape(q.shape).double()


def test_every_kind_has_its_family():
    assert FAMILIES.keys() == KINDS.keys()


@laws
@given(every, shapes, seeds)
def test_unpack_inverts_pack(format, shape, seed):
    q = encode(tensor(shape, seed), format)
    packed = q.pack()
    assert same(QTensor.unpack(packed, format, shape), q)
    assert q.shape == shape and q.dequantize().dtype == torch.float32 and q.dequantize().shape == shape
    assert q.nbytes == sum(part.nbytes for part in packed.values())


# What a tensor of ``rows`` channels has once, in bits; all else grows with the elements.
def fixed_bits(format, rows):
    granularity = format.granularity or {"int": "channel", "uint": "tensor"}.get(format.kind, "")
    affine = 32 + (format.width if format.kind == "uint" else 0)
    if granularity in {"tensor", "channel"}:
        return affine * (1 if granularity == "tensor" else rows)
    return {"vsq": 32 * rows, "binary": 32 * rows, "ternary": 32 * rows, "kmeans": 32 * 2**format.width}.get(
        format.kind, 0
    )


@pytest.mark.parametrize("format", EVERY, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_bits_are_those_of_the_bytes_pack_makes(format, rows):
    """Channels of 1120 elements are whole groups and blocks of every size here, and whole bytes: nothing is rounded."""
    length = 1120  # 5 * 7 * 32
    packed = encode(tensor((rows, length), 7), format).pack()
    made = 8 * sum(part.nbytes for part in packed.values())
    assert made == pytest.approx(format.bits * rows * length + fixed_bits(format, rows), abs=7 * len(packed))
    if rows == 1:  # of each length the same again: the slope alone
        twice = encode(tensor((1, 2 * length), 7), format)
        assert 8 * twice.nbytes - made == pytest.approx(format.bits * length, abs=7 * len(packed))


@laws
@given(every, shapes, seeds)
def test_a_short_block_at_the_end_costs_at_most_a_whole_one(format, shape, seed):
    q = encode(tensor(shape, seed), format)
    rows = shape[0] if len(shape) > 1 else 1
    block = format.group or 32
    elements = q.codes.numel()
    most = format.bits * (elements + rows * (block - 1)) + fixed_bits(format, rows) + 7 * (1 + len(q.parameters))
    assert format.width * elements * (0.75 if format.kind == "mx" else 1) <= 8 * q.nbytes <= most


@laws
@given(st.sampled_from(["int", "uint"]), widths, suffixes, shapes, seeds)
def test_inside_the_range_a_value_moves_by_half_a_step_at_most(kind, width, suffix, shape, seed):
    assume((kind, width) != ("int", 1))  # has no positive codes
    x = tensor(shape, seed)
    q = encode(x, f"{kind}{width}{suffix}")
    lowest, highest = code_range(q.format)
    assert lowest <= int(q.codes.min()) <= int(q.codes.max()) <= highest
    moved, step = (q.dequantize().double() - x.double()).abs(), steps(q)
    # A zero point is rounded, which moves the range by up to half a step: an end of it may be clipped by as much.
    assert bool((moved <= step * (1.0 if kind == "uint" else 0.5) * (1 + 2.0**-20) + x.abs() * 2.0**-22).all())
    if kind == "uint":
        inside = (q.codes > lowest) & (q.codes < highest)
        assert bool((moved <= step / 2 * (1 + 2.0**-20) + x.abs() * 2.0**-22)[inside].all())
    assert bool((q.dequantize()[x == 0] == 0).all())


@laws
@given(widths, suffixes, seeds)
def test_negative_values_in_int1_move_by_half_a_step_at_most(width, suffix, seed):
    x = -tensor((3, 11), seed).abs()
    q = encode(x, f"int1{suffix}")
    assert bool(((q.dequantize() - x).abs() <= steps(q) / 2).all())


# The two whose parameters are rounded another time when the largest value has moved.
UNSTABLE = {"uint", "vsq"}


@laws
@given(st.sampled_from([f for f in EVERY if f.kind not in UNSTABLE]), shapes, seeds)
def test_encoding_what_was_decoded_changes_nothing(format, shape, seed):
    """But the last bit of a scale: the largest value is its code times the rounded scale."""
    once = encode(tensor(shape, seed), format)
    twice = encode(once.dequantize(), format)
    assert torch.allclose(twice.dequantize(), once.dequantize(), rtol=1e-6, atol=0)
    if format.kind not in {"kmeans", "binary"}:  # entries may have become one; a scale of 0 has no sign
        assert torch.equal(twice.codes, once.codes)


@laws
@given(st.sampled_from([f for f in EVERY if f.kind in UNSTABLE]), seeds)
def test_encoding_what_was_decoded_moves_values_by_half_a_step_of_their_block_at_most(format, seed):
    once = encode(tensor((3, 40), seed), format).dequantize()
    twice = encode(once, format)
    if format.kind == "vsq":
        s = twice.parameters["vector_scale"].repeat_interleave(16, 1)[:, :40]
        step = s * twice.parameters["scale"]
        inside = twice.codes.abs() < 7  # a vector's scale is rounded, and may clip its largest value
    else:
        step, inside = steps(twice), (twice.codes > 0) & (twice.codes < 2**format.width - 1)
    assert bool(((twice.dequantize() - once).abs() <= step * 0.50001)[inside].all())


@laws
@given(every, st.integers(-4, 4), seeds)
def test_scaling_by_a_power_of_two_scales_the_result(format, k, seed):
    x = torch.randn((3, 35), generator=torch.Generator().manual_seed(seed))
    assume(float(x.abs().min()) > 2.0**-9)  # above float16's subnormal numbers
    q, scaled = encode(x, format), encode(x * 2.0**k, format)
    assert torch.equal(scaled.dequantize(), q.dequantize() * 2.0**k)
    if format.kind not in {"float", "bfloat"}:
        assert torch.equal(scaled.codes, q.codes)


@laws
@given(st.integers(2, 8), seeds, st.lists(st.integers(1, 6), min_size=3, max_size=3))
def test_group_error_is_at_most_channel_error_is_at_most_tensor_error_where_scales_divide(width, seed, divisors):
    """Finer scales are smaller, but a smaller step alone may miss a value that the larger happened to hit. Where the coarser
    scale is a whole multiple of the finer, every coarse code in the finer range is a fine one too, and the nearest of more
    is never farther; what coarse codes lie beyond the range lie beyond its end, which is a fine code. So for each value.
    """
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand((3, 32), generator=g) * 2 - 1) * 0.99
    largest = 2 ** (width - 1) - 1
    for row, divisor in zip(
        x, divisors, strict=True
    ):  # row's largest |x| is largest / divisor, its second group's a third
        row *= 0.5 * largest / divisor / 3
        row[0], row[16] = largest / divisor, largest / divisor / 3
    x[0, 0] *= divisors[0]  # the tensor's largest: its scale is 1
    float32 = 1e-5
    tensor_, channel, group = (
        (encode(x, f"int{width}{suffix}").dequantize() - x).abs() for suffix in (":tensor", ":channel", ":group=16")
    )
    assert bool((group <= channel + float32).all()) and bool((channel <= tensor_ + float32).all())


@pytest.mark.parametrize("kind", ["int", "uint"])
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_group_error_is_below_channel_error_is_below_tensor_error_in_the_mean(kind, width):
    """Whatever the data, steps get finer; on bell-shaped channels of different widths, errors do, in the mean of 20."""
    found = {":tensor": 0.0, ":channel": 0.0, ":group=16": 0.0}
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn((8, 64), generator=g) * (0.3 + torch.rand((8, 1), generator=g))
        stepped = []
        for suffix in found:
            q = encode(x, f"{kind}{width}{suffix}")
            found[suffix] += float((q.dequantize() - x).square().mean())
            stepped.append(steps(q))
        assert bool((stepped[2] <= stepped[1]).all()) and bool((stepped[1] <= stepped[0]).all())
    assert found[":group=16"] < found[":channel"] < found[":tensor"]


@laws
@given(st.integers(1, 8), shapes, seeds)
def test_kmeans_is_never_worse_than_linear(width, shape, seed):
    x = tensor(shape, seed)
    linear = min(error(x, f"{kind}{width}:tensor") for kind in ("int", "uint"))
    assert error(x, f"kmeans{width}") <= linear * (1 + 1e-9)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_kmeans_is_that_of_scikit_learn(width):
    """Which starts from 50 random codebooks; ours from three."""
    from sklearn.cluster import KMeans

    x = torch.randn(400, generator=torch.Generator().manual_seed(1))
    theirs = KMeans(2**width, n_init=50, random_state=0).fit(x.numpy()[:, None]).inertia_ / 400
    assert error(x, f"kmeans{width}") <= theirs * 1.02


def test_values_that_fit_the_codebook_are_kept_exactly():
    x = torch.tensor([[3.0, -1.0, 0.1], [0.1, 3.0, 7.0]])
    assert torch.equal(encode(x, "kmeans2").dequantize(), x)


@laws
@given(st.sampled_from(["mxfp4", "mxfp6", "mxfp8"]), st.data())
def test_every_element_of_the_standard_is_kept(text, data):
    """Codes are the standard's bits: torch's own float8 says so for E4M3."""
    width = Format.of(text).width
    nan = {0x7F, 0xFF} if text == "mxfp8" else set()
    code = data.draw(st.sampled_from([c for c in range(2**width) if c not in {*nan, 2 ** (width - 1)}]))
    top = 2 ** (width - 1) - 1 - len(nan) // 2  # so that the block's exponent is 0
    q = encode(torch.zeros(1, 32), text)
    codes = torch.tensor([[code, top, *[0] * 30]], dtype=torch.int32)
    q = QTensor(q.format, codes, {"exponent": torch.zeros((1, 1), dtype=torch.int32)})
    assert same(encode(q.dequantize(), text), q)
    if text == "mxfp8":
        theirs = codes.to(torch.uint8).view(torch.float8_e4m3fn).float()
        assert torch.equal(theirs, q.dequantize())


@laws
@given(seeds)
def test_mxfp8_rounds_as_torch_rounds_to_float8(seed):
    x = torch.randn((1, 32), generator=torch.Generator().manual_seed(seed)) * 60
    x[0, 0] = 300.0  # the block's exponent is then 0
    x[0, 1:] = x[0, 1:].clamp(-440, 440)
    assert torch.equal(encode(x, "mxfp8").dequantize(), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize(
    ("text", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_floats_are_torchs(text, dtype):
    x = tensor((7, 11), 3)
    assert torch.equal(encode(x, text).dequantize(), x.to(dtype).float())


def test_a_value_beyond_float16_becomes_the_largest():
    assert encode(torch.tensor([1e6, -1e6]), "float16").dequantize().tolist() == [65504.0, -65504.0]
