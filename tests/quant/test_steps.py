"""Weights whose blocks share a scale or an exponent, as programs have them: int8 codes level * step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.quant import QTensor, encode, quantize_weight
from haqsearch.quant.families import STEPPED
from haqsearch.quant.steps import grid_of, steps_of, stored
from haqsearch.spec import Format
from haqsearch.spec.formats import NAMES

from .laws import laws

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1, 1), (3, 7), (4, 3, 3, 3), (5, 1, 3, 3), (2, 300)])
draws = st.sampled_from(["bell", "heavy", "sparse", "uneven"])
BLOCKS = ["vsq4", "mx4", "mx6", "mx9", "mxfp4", "mxfp6", "mxfp8", "mxint8"]
groups = st.builds("int{}:group={}".format, st.integers(2, 8), st.sampled_from([1, 2, 5, 16, 1000]))
every = st.one_of(st.sampled_from(BLOCKS), groups).map(Format.parse)


def drawn(shape, seed, kind="bell"):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g)
    if kind == "heavy":
        w = w**3
    elif kind == "sparse":
        w = w * (torch.rand(shape, generator=g) < 0.3)
    elif kind == "uneven":  # neighbours of very different size
        w = w * torch.exp(3 * torch.randn(shape, generator=g))
    return w


def error(w, q):
    scale = q.scale.double().reshape(-1, *[1] * (w.ndim - 1))
    return (q.codes.double() * scale - w.double()).square().flatten(1).sum(1)


def test_every_format_with_steps_says_which():
    formats = [*NAMES.values(), Format.of("int4:group=16"), Format.of("uint4:group=16")]
    assert {format.kind for format in formats if format.has_steps} == STEPPED.keys()


@laws
@given(shapes, seeds, draws, every)
def test_codes_are_levels_times_steps_within_int8(shape, seed, kind, format):
    q, shared = quantize_weight(drawn(shape, seed, kind), format), steps_of(format)
    assert q.codes.dtype == torch.int8 and q.step.dtype == torch.uint8 and q.codes.shape == q.step.shape == shape
    assert q.scale.dtype == torch.float32 and q.scale.shape == shape[:1] and bool((q.scale > 0).all())
    assert not (q.codes.int() % q.step.int()).any() and int(q.codes.int().abs().max()) <= format.code_max == 127
    assert torch.isin(q.codes.int() // q.step.int(), shared.levels.int()).all()
    assert torch.isin(q.step.int(), shared.steps.int()).all()
    rows = q.step.reshape(shape[0], -1)
    for start in range(0, rows.shape[1], shared.block):
        block = rows[:, start : start + shared.block].int()
        if shared.pair:
            assert bool((block[:, 0::2][:, : block.shape[1] // 2] == block[:, 1::2]).all())
        assert bool((block.amax(1) <= block.amin(1) * (2 if shared.pair else 1)).all())


@laws
@given(shapes, seeds, draws, every)
def test_what_is_stored_is_a_tensor_of_the_format_with_the_values_of_the_codes(shape, seed, kind, format):
    """Exactly: read back from its bytes too."""
    q = quantize_weight(drawn(shape, seed, kind), format)
    kept = stored(q.codes, format)
    again = QTensor.unpack(kept.pack(), format, shape)
    assert torch.equal(again.dequantize(), q.codes.float())
    assert torch.equal(again.dequantize() * q.scale.reshape(-1, *[1] * (len(shape) - 1)), q.dequantize())


@laws
@given(st.integers(1, 4), st.integers(1, 70), seeds, every)
def test_whatever_levels_and_steps_there_are_they_can_be_stored(rows, length, seed, format):
    g, shared = torch.Generator().manual_seed(seed), steps_of(format)
    level = shared.levels[torch.randint(len(shared.levels), (rows, length), generator=g)]
    index = torch.randint(len(shared.steps), (rows, -(-length // shared.block)), generator=g)
    step = shared.steps[index].repeat_interleave(shared.block, 1)[:, :length]
    if shared.pair:  # some pairs halve it
        half = torch.rand(rows, -(-length // shared.pair), generator=g) < 0.5
        half = half.repeat_interleave(shared.pair, 1)[:, :length] & (step > 1)
        step = torch.where(half, step // 2, step)
    codes = (level * step).to(torch.int8)
    assert torch.equal(stored(codes, format).dequantize(), codes.float())


@laws
@given(st.sampled_from([(1, 1), (3, 7), (4, 3, 3, 3), (6, 33), (7, 50)]), seeds, every)
def test_bits_are_those_of_the_packed_bytes_ragged_blocks_too(shape, seed, format):
    """But for the scales of channels, which every format of integer weights has."""
    kept = stored(quantize_weight(drawn(shape, seed), format).codes, format)
    own = 4 * shape[0] if format.kind == "vsq" else 0
    rows, length = shape[0], kept.codes[0].numel()
    assert format.nbytes(rows, length) == kept.nbytes - own == sum(p.nbytes for p in kept.pack().values()) - own
    whole = 160  # elements: blocks of every size but the largest, and whole bytes
    if whole % steps_of(format).block == 0:
        assert format.nbytes(rows, whole) == pytest.approx(format.bits * rows * whole / 8)


@laws
@given(shapes, seeds, draws, every)
def test_encoding_what_was_decoded_changes_nothing(shape, seed, kind, format):
    q = quantize_weight(drawn(shape, seed, kind), format)
    again = q.encode(q.dequantize())
    assert torch.equal(again.codes, q.codes) and torch.equal(again.step, q.step) and again.bias_correction is None
    other = q.encode(drawn(shape, seed + 1))
    assert torch.equal(other.step, q.step) and not (other.codes.int() % q.step.int()).any()
    stored(other.codes, format)


@laws
@given(shapes, seeds, draws, st.integers(2, 8), st.sampled_from([1, 2, 5, 16, 1000]))
def test_group_error_is_at_most_channel_error(shape, seed, kind, width, size):
    w = drawn(shape, seed, kind)
    fine, coarse = (error(w, quantize_weight(w, Format("int", width, *shared))) for shared in (("group", size), ()))
    assert bool((fine <= coarse).all())


@pytest.mark.parametrize(
    ("fine", "coarse"),
    [("int4:group=16", "int4"), ("int4:group=16", "int4:group=64"), ("int4:group=64", "int4"), ("vsq4", "int4"),
     ("int3:group=16", "int3"), ("int2:group=16", "int2"), ("int6:group=16", "int6"), ("mx6", "int5"), ("mx4", "int3"),
     ("mxfp4", "int3"), ("mxfp6", "int5"), ("int8:group=16", "int7:group=16"), ("mxfp6", "mxfp4"), ("mx9", "mx6")],
)  # fmt: skip
def test_sharing_by_fewer_errs_less_on_a_layer_of_real_size(fine, coarse):
    w = drawn((32, 16, 3, 3), 1)
    less, more = (float(error(w, quantize_weight(w, Format.parse(text))).sum()) for text in (fine, coarse))
    assert less < 0.9 * more


@pytest.mark.parametrize("text", ["vsq4", "mx4", "mx6", "mxfp4", "mxfp6", "int4:group=16"])
def test_integer_steps_cost_nothing_against_the_tensor_format(text):
    """Whose scales or exponents are free, but are those of the largest values, not of least error."""
    w = drawn((32, 16, 3, 3), 2)
    free = float((encode(w, text).dequantize() - w).square().sum())
    assert float(error(w, quantize_weight(w, Format.parse(text))).sum()) < free


@pytest.mark.parametrize(
    ("text", "levels", "steps"),
    [
        ("vsq4", range(-7, 8), range(1, 16)), ("int4:group=9", range(-7, 8), range(1, 19)),
        ("int2:group=9", (-1, 0, 1), range(1, 128)), ("int8:group=9", range(-127, 128), [1]),
        ("mx4", range(-3, 4), [1, 2, 4, 8, 16, 32]), ("mx6", range(-15, 16), [1, 2, 4, 8]), ("mx9", range(-127, 128), [1]),
        ("mxfp4", (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12), [1, 2, 4, 8]),  # 0.5 1 1.5 2 3 4 6, doubled
        ("mxint8", range(-127, 128), [1]),
    ],
)  # fmt: skip
def test_levels_and_steps_by_hand(text, levels, steps):
    shared = steps_of(Format.parse(text))
    assert shared.levels.tolist() == list(levels) and shared.steps.tolist() == list(steps)
    assert int(shared.levels.max() * shared.steps.max()) <= 127


def test_small_floats_by_hand():
    """E2M3: 0 .. 7.5 in eighths, spaced 1/8, 1/4, 1/2. E4M3: to 448, of which 4 is the finest that 127 steps reach."""
    six, eight = (steps_of(Format.parse(text)) for text in ("mxfp6", "mxfp8"))
    assert six.levels[six.levels >= 0].tolist() == [*range(16), *range(16, 32, 2), *range(32, 64, 4)]
    assert eight.levels[eight.levels >= 0].tolist() == [
        *range(17),
        *range(18, 33, 2),
        *range(36, 65, 4),
        *range(72, 113, 8),
    ]
    assert (six.steps.tolist(), eight.steps.tolist()) == ([1, 2], [1])


def test_a_matrix_by_hand():
    """Groups of two, int3: levels -3 .. 3. The pairs of row one want scales of 0.5 and 1.0: steps 1 and 2 of 0.5."""
    w = torch.tensor([[1.5, -0.5, 3.0, -2.0], [0.0, 0.0, 0.3, 0.9]])
    q = quantize_weight(w, Format.parse("int3:group=2"))
    assert torch.allclose(q.dequantize(), w, rtol=1e-6)
    kept = stored(q.codes, q.format)
    assert kept.codes[0].tolist() == [3, -1, 3, -2]
    ratio = kept.parameters["scale"][0]
    assert float(ratio[1] / ratio[0]) == 2.0


def test_codes_that_no_steps_divide_are_refused():
    codes = torch.zeros(2, 32, dtype=torch.int8)
    codes[1, :3] = torch.tensor([7, 14, 105])
    assert stored(codes, Format.parse("int8:group=16")).dequantize()[1, 2] == 105
    for text in ("vsq4", "int4:group=16", "mx4", "mxfp4"):
        with pytest.raises(DataError, match=f"not codes of {text}: no step divides"):
            stored(codes, Format.parse(text))
    mx = torch.tensor([[3, 1, 6, 2, 12, 0]], dtype=torch.int8)  # steps 1 and 2 in one block may be, 4 as well may not
    with pytest.raises(DataError, match="not codes of mx4"):
        stored(mx, Format.parse("mx4"))
    kept = stored(mx[:, :4], Format.parse("mx4"))
    assert kept.parameters["micro_exponent"].tolist() == [[1, 0]] and kept.dequantize().tolist() == [[3, 1, 6, 2]]
    with pytest.raises(DataError, match="not codes of mx9"):
        stored(torch.full((1, 4), -128, dtype=torch.int8), Format.parse("mx9"))


@pytest.mark.parametrize("text", [*BLOCKS, "int4:group=3", "int2:group=1", "int8:group=1000"])
def test_zeros_constants_single_weights_and_bad_numbers(text):
    format = Format.parse(text)
    for w in (torch.zeros(3, 4), torch.full((3, 4), -0.7), torch.tensor([[2.5]]), torch.full((1, 1, 3, 3), 1e-30)):
        made = quantize_weight(w, format)
        torch.testing.assert_close(made.dequantize(), w, rtol=1e-6, atol=0)
    half = torch.cat([torch.zeros(1, 40), drawn((2, 40), 0)])
    made = quantize_weight(half, format)
    assert float(made.scale[0]) == 1.0 and not made.codes[0].any()
    for bad in (torch.tensor([[1.0, float("nan")]]), torch.tensor([[torch.inf]]), torch.empty(0, 3), torch.empty(3, 0)):
        with pytest.raises(DataError, match="layer x: "):
            quantize_weight(bad, format, "layer x")


@laws
@given(st.integers(1, 5), st.integers(1, 40), seeds, st.sampled_from(["vsq4", "mx6", "int4:group=7"]))
def test_channels_do_not_see_each_other(rows, length, seed, text):
    w, format = drawn((rows, length), seed), Format.parse(text)
    q = quantize_weight(w, format)
    alone = quantize_weight(w[-1:], format)
    assert torch.equal(q.codes[-1:], alone.codes) and torch.equal(q.scale[-1:], alone.scale)


def test_a_group_longer_than_a_channel_is_the_channel():
    w = drawn((5, 30), 3)
    one, longer = (quantize_weight(w, Format.parse(f"int4:group={size}")) for size in (30, 31))
    assert torch.equal(one.dequantize(), longer.dequantize())
    assert longer.format.nbytes(5, 30) == 5 * 30 // 2 + 5 * 4


@laws
@given(shapes, seeds, every, st.floats(0.5, 1.5))
def test_training_starts_inside_the_cells_of_the_codes(shape, seed, format, factor):
    """And rounds a weight there to the code it has; elsewhere as encoding does."""
    w = drawn(shape, seed)
    q = quantize_weight(w, format)
    grid = q.grid
    low, high = grid.cells(q.codes)
    steps = w / q.scale.reshape(-1, *[1] * (w.ndim - 1))
    for inside in (low, high, steps.clamp(low, high)):
        assert torch.equal(grid.snap(inside), q.codes.float())
    assert torch.allclose(grid.through(factor * steps), grid.snap(factor * steps))
    assert grid_of(format).snap(torch.tensor([0.2])).tolist() == [0.0]
