from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.calibrate import HistogramObserver
from haqsearch.calibrate.histogram import BINS
from haqsearch.errors import DataError
from haqsearch.spec import Format

from .laws import laws

reals = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0, 2.0**-100])
batches = st.lists(st.lists(reals, min_size=1, max_size=8), min_size=1, max_size=6)
formats = st.sampled_from([*(Format("int", b) for b in (2, 4, 8)), *(Format("uint", b) for b in (1, 2, 4, 8))])


def _observe(values) -> HistogramObserver:
    observer = HistogramObserver("conv1")
    for batch in values:
        observer.update(torch.tensor(batch))
    return observer


def _batches(seed, n=3, kind="relu"):
    g = torch.Generator().manual_seed(seed)
    x = [torch.randn(400, generator=g) * 2.0 ** (3 * i) for i in range(n)]
    return [t.relu() for t in x] if kind == "relu" else x


def _histogram_error(observer, params) -> float:
    centres = observer.low + (np.arange(BINS) + 0.5) * (observer.width / BINS)
    codes = np.clip(np.rint(centres / params.scale) + params.zero_point, params.format.code_min, params.format.code_max)
    return float((observer.counts * ((codes - params.zero_point) * params.scale - centres) ** 2).sum())


@laws
@given(batches)
def test_every_value_is_counted_and_the_extremes_are_true(values):
    observer = _observe(values)
    flat = [v for batch in values for v in batch]
    assert int(observer.counts.sum()) == len(flat)
    assert (observer.minimum, observer.maximum) == (min(flat), max(flat))
    assert observer.low <= min(flat)
    assert max(flat) <= observer.high
    assert observer.low <= 0 <= observer.high


@laws
@given(batches, formats)
def test_streaming_and_one_shot_agree_on_the_extremes(values, format):
    flat = [v for batch in values for v in batch]
    streamed, whole = _observe(values), _observe([flat])
    assert (streamed.minimum, streamed.maximum) == (whole.minimum, whole.maximum)
    assert streamed.counts.sum() == whole.counts.sum()
    assert streamed.min_max(format) == whole.min_max(format)


@laws
@given(batches, formats, st.randoms())
def test_the_order_of_batches_is_irrelevant_to_min_max(values, format, random):
    assert _observe(random.sample(values, len(values))).min_max(format) == _observe(values).min_max(format)


@laws
@given(st.integers(0, 1000), st.sampled_from(["relu", "both"]))
def test_growth_merges_bins_and_moves_no_value_out_of_its_bin(seed, kind):
    """After growth every count still is the number of values between the edges of its bin, up to float32 at the edges."""
    observer = HistogramObserver()
    seen = []
    for batch in _batches(seed, 4, kind):
        observer.update(batch)
        seen.append(batch)
    edges = observer.low + np.arange(BINS + 1) * (observer.width / BINS)
    values = torch.cat(seen).double().numpy()
    slack = observer.width * 2.0**-22
    cumulative = np.cumsum(observer.counts)
    assert (np.searchsorted(np.sort(values), edges[1:] - slack) <= cumulative).all()
    assert (cumulative <= np.searchsorted(np.sort(values), edges[1:] + slack, side="right")).all()


@laws
@given(batches, formats)
def test_mse_is_never_worse_than_min_max(values, format):
    observer = _observe(values)
    best, plain = observer.mse(format), observer.min_max(format)
    if observer.width:
        assert _histogram_error(observer, best) <= _histogram_error(observer, plain) * (1 + 1e-12)
    assert best.scale <= plain.scale


@pytest.mark.parametrize("width", [2, 3, 4])
def test_few_bits_clip_a_bell(width):
    x = torch.randn(20000, generator=torch.Generator().manual_seed(1))
    observer = HistogramObserver()
    observer.update(x)
    assert observer.mse(Format("uint", width)).scale < 0.9 * observer.min_max(Format("uint", width)).scale


@pytest.mark.parametrize("value", [3.0, -3.0, 0.0, 1e-30, 2.0**-140])
@pytest.mark.parametrize("format", [Format("int", 4), Format("uint", 8)], ids=str)
def test_a_constant_tensor_has_a_range(value, format):
    observer = _observe([[value] * 5, [value] * 2])
    assert int(observer.counts.sum()) == 7
    for params in (observer.min_max(format), observer.mse(format)):
        assert params.scale > 0
        code = round(value / params.scale) + params.zero_point
        assert format.code_min <= code <= format.code_max
    if value == 0.0:
        assert observer.mse(format) == observer.min_max(format)
        assert observer.min_max(format).scale == 1.0


def test_zeros_before_the_first_value_are_counted_at_zero():
    observer = _observe([[0.0] * 5, [0.0] * 6, [-1.0, 3.0]])
    at_zero = int(BINS / 4)
    assert observer.counts[at_zero] == 11
    assert observer.counts.sum() == 13


def test_counts_stay_exact_beyond_what_float32_counts():
    observer = HistogramObserver()
    x = torch.zeros(2**24 + 4, dtype=torch.float16)
    x[-1] = 1.0
    observer.update(x)
    assert int(observer.counts[0]) == 2**24 + 3  # an odd number, which float32 does not have


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_no_numbers_are_refused_with_the_name_and_change_nothing(bad):
    observer = _observe([[1.0, 2.0]])
    before = (observer.counts.copy(), observer.minimum, observer.maximum)
    with pytest.raises(DataError, match=r"^conv1: the values hold NaN or infinity"):
        observer.update(torch.tensor([1.0, bad]))
    assert (observer.counts == before[0]).all()
    assert (observer.minimum, observer.maximum) == before[1:]


def test_no_data_is_refused_with_the_name():
    observer = HistogramObserver("conv1")
    with pytest.raises(DataError, match=r"^conv1: calibration got an empty tensor"):
        observer.update(torch.empty(0, 3))
    for ranges in (observer.min_max, observer.mse):
        with pytest.raises(DataError, match=r"^conv1: no range, because no data was seen"):
            ranges(Format("uint", 8))


def test_any_shape_and_a_tensor_with_a_gradient_will_do():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    observer = HistogramObserver()
    observer.update(x)
    observer.update(x[0, 0].bfloat16())
    assert int(observer.counts.sum()) == 28
