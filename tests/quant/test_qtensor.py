"""Laws of every number format on tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from haqsearch.errors import DataError, PolicyError
from haqsearch.quant import QTensor, encode, from_packed_state, packed_state
from haqsearch.quant.families import FAMILIES
from haqsearch.quant.families.affine import code_range
from haqsearch.spec import Format
from haqsearch.spec.formats import KINDS, NAMES

from .laws import laws

GROUPED = [
    "int4:tensor",
    "int3:channel",
    "uint5:channel",
    "int2:group=16",
    "uint3:group=5",
    "int1:group=1",
    "uint16:group=7",
]
EVERY = [*NAMES.values(), *map(Format.of, GROUPED)]
every = st.sampled_from(EVERY)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(), (1,), (37,), (1, 1), (3, 7), (2, 33), (4, 3, 3, 3), (5, 1, 48)])
widths = st.integers(1, 16)
suffixes = st.sampled_from(["", ":tensor", ":channel", ":group=1", ":group=5", ":group=16"])


def tensor(shape, seed):
    """Values of very different sizes, some of them zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * torch.exp2(torch.randint(-6, 6, shape, generator=g))
    return x * (torch.rand(shape, generator=g) < 0.9)


def error(x, format):
    return float((encode(x, format).dequantize().double() - x.double()).square().mean())


def same(a, b):
    return (
        a.format == b.format
        and torch.equal(a.codes, b.codes)
        and a.parameters.keys() == b.parameters.keys()
        and all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)
    )


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


# -- files --------------------------------------------------------------------------------------------------------------


def test_a_file_holds_every_format(tmp_path):
    made = {f"layer.{i}.weight": encode(tensor((3, 37), i), format) for i, format in enumerate(EVERY)}
    state, metadata = packed_state(made)
    save_file(state, tmp_path / "x.safetensors", metadata)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        found = from_packed_state({key: file.get_tensor(key) for key in file.keys()}, file.metadata())
    assert found.keys() == made.keys()
    assert all(same(found[name], made[name]) for name in made)


def _spoil(state, metadata, how):
    if how == "no metadata":
        return state, None
    if how == "no json":
        return state, {"haqsearch_tensors": "{"}
    if how == "missing":
        return {"w.codes": state["w.codes"]}, metadata
    if how == "short":
        return {**state, "w.codes": state["w.codes"][:-1]}, metadata
    if how == "nan":
        return {**state, "w.scale": state["w.scale"] * torch.nan}, metadata
    old, new = {
        "version": ('_version": 1', '_version": 9'),
        "format": ("int4", "int99"),
        "shape": ("[3, 5]", "[3, -5]"),
    }[how]
    return state, {"haqsearch_tensors": metadata["haqsearch_tensors"].replace(old, new)}


@pytest.mark.parametrize("how", ["no metadata", "no json", "missing", "short", "nan", "version", "format", "shape"])
def test_a_spoilt_file_is_refused_by_name(how):
    state, metadata = _spoil(*packed_state({"w": encode(torch.randn(3, 5), "int4")}), how)
    with pytest.raises(DataError, match=r"^w\.safetensors: "):
        from_packed_state(state, metadata, "w.safetensors")


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="has the parameters"):
        QTensor(Format.of("int4"), torch.zeros(3, 5, dtype=torch.int32), {"scale": torch.ones(1, 1)})
    with pytest.raises(DataError, match="is stored as codes, scale, not codes"):
        QTensor.unpack({"codes": torch.zeros(8, dtype=torch.uint8)}, Format.of("int4"), (3, 5))
    beyond = QTensor(Format.of("int4"), torch.full((1, 5), 8, dtype=torch.int32), {"scale": torch.ones(1, 1)})
    with pytest.raises(DataError, match="cannot pack"):
        beyond.pack()


# -- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_nan_infinity_and_emptiness_are_refused(format):
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(DataError, match=r"of shape \[2, 3\] that holds NaN or infinity"):
            encode(torch.tensor([[1.0, 2.0, bad], [0.0, 0.0, 0.0]]), format)
    for shape in ((0,), (0, 3), (3, 0)):
        with pytest.raises(DataError, match="empty tensor"):
            encode(torch.zeros(shape), format)


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_constants_and_zeros_are_exact(format):
    """A constant is an end of its range. -0.75 has digits few enough for mx, mxfp, mxint, and the one sign that int1 has."""
    zeros = encode(torch.zeros(3, 20), format)
    assert not zeros.dequantize().any() and all(bool(torch.isfinite(p).all()) for p in zeros.parameters.values())
    x = torch.full((3, 20), -0.75)
    assert torch.allclose(encode(x, format).dequantize(), x, rtol=1e-6)
    rows = torch.randn((3, 20), generator=torch.Generator().manual_seed(0))
    rows[1] = 0.0
    kept = encode(rows, format).dequantize()
    assert format.kind == "kmeans" or not kept[1].any()  # a codebook of all channels need not hold zero


@pytest.mark.parametrize("kind", ["int", "uint"])
def test_a_group_of_one_element_is_exact(kind):
    x = tensor((3, 7), 5)
    assert torch.allclose(encode(x, f"{kind}2:group=1").dequantize(), x, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int", "uint"])
def test_a_group_that_does_not_divide_leaves_a_shorter_one(kind):
    """And groups never reach from one channel into the next."""
    x = tensor((2, 3, 7), 6)
    found = encode(x, f"{kind}3:group=16")
    assert found.parameters["scale"].shape == (2, 2)
    for row, kept in zip(x.reshape(2, 21), found.dequantize().reshape(2, 21), strict=True):
        parts = [encode(part, f"{kind}3:tensor").dequantize() for part in (row[:16], row[16:])]
        assert torch.equal(kept, torch.cat(parts))
    longer = encode(x, f"{kind}3:group=1000")
    assert torch.equal(longer.dequantize(), encode(x, f"{kind}3:channel").dequantize())


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_the_largest_and_the_least_floats_stay_finite(format):
    huge = torch.tensor([[3.4e38, -1.0, 1e-38], [1e-45, 0.0, -1e-45]])
    for x in (huge, huge[:, 2:] * 1e-3, torch.full((1, 3), torch.finfo(torch.float32).max)):
        q = encode(x, format)
        assert bool(torch.isfinite(q.dequantize()).all())
        assert same(QTensor.unpack(q.pack(), q.format, q.shape), q)


def test_a_scale_rounded_up_does_not_carry_the_largest_float_beyond_itself():
    largest = torch.finfo(torch.float32).max
    for width in range(2, 17):
        for sign in (1, -1):
            kept = encode(torch.tensor([sign * largest]), f"int{width}").dequantize()
            assert abs(float(kept)) == pytest.approx(largest, rel=1e-6)


def test_the_threshold_of_ternary_is_seven_tenths_of_the_mean_magnitude():
    """Means of 0.9146 and 0.9075: 0.6585 is 0.72 of one, 0.63 is 0.694 of the other."""
    assert encode(torch.tensor([1, -1, 1, -0.6585]), "ternary").codes.tolist() == [1, -1, 1, -1]
    assert encode(torch.tensor([1, -1, 1, -0.63]), "ternary").codes.tolist() == [1, -1, 1, 0]


def test_a_range_beyond_float32_is_refused():
    with pytest.raises(DataError, match="beyond float32"):
        encode(torch.tensor([3.4e38, -3.4e38]), "uint1")


def test_other_number_types_are_read_as_float32_or_refused():
    whole = torch.tensor([[1, -2], [3, 0]])
    assert torch.equal(encode(whole, "float32").dequantize(), whole.float())
    assert torch.equal(encode(whole.double(), "int8").dequantize(), encode(whole.float(), "int8").dequantize())
    with pytest.raises(DataError, match="NaN or infinity as float32"):
        encode(torch.tensor([1e300], dtype=torch.float64), "int8")
    with pytest.raises(DataError, match="complex"):
        encode(torch.zeros(2, dtype=torch.complex64), "int8")


@pytest.mark.parametrize(
    "text", ["int0", "int17", "int17:tensor", "uint0:group=4", "kmeans9", "mx5", "int4:group=0", "vsq4:group=8"]
)
def test_bits_out_of_range_are_refused(text):
    with pytest.raises(PolicyError, match="unknown number format"):
        encode(torch.ones(3), text)


@pytest.mark.parametrize(
    "format",
    [Format("mx", 5), Format("float", 64), Format("int", 4, "group"), Format("int", 4, "row"), Format("nf", 4), 4],
)
def test_a_format_made_by_hand_that_is_none_is_refused(format):
    with pytest.raises(PolicyError, match="unknown number format"):
        encode(torch.ones(3), format)


def test_the_tensor_itself_stays_as_it_was():
    x = tensor((3, 17), 8)
    before = x.clone()
    for format in EVERY:
        q = encode(x, format)
        q.pack(), q.dequantize().mul_(2)
        assert same(q, encode(x, format))
    assert torch.equal(x, before)
