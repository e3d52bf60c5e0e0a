from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from haqsearch.calibrate import OBSERVERS, Collector, HistogramObserver, collect
from haqsearch.calibrate.aciq import Aciq
from haqsearch.calibrate.ema import Ema
from haqsearch.calibrate.histogram import BINS
from haqsearch.calibrate.percentile import Percentile
from haqsearch.calibrate.statistics import Reservoir
from haqsearch.errors import DataError, RecipeError
from haqsearch.quant import QParams, affine_params, dequantize, quantize
from haqsearch.spec import Format

laws = settings(deadline=None, max_examples=40)
reals = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1.0, -1.0, 2.0**-100])
batches = st.lists(st.lists(reals, min_size=3, max_size=3), min_size=1, max_size=6)
TEXTS = ["int2", "int4", "int8", "uint2", "uint4", "uint8"]
formats = st.sampled_from([Format.parse(text) for text in [*TEXTS, "uint1", "uint16"]])
seeds = st.integers(0, 10**6)
LAWS = ["gauss", "laplace", "half-normal", "half-laplace"]


def bell(law: str, n: int = 200_000, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n) if law in {"gauss", "half-normal"} else rng.laplace(size=n)
    return torch.from_numpy(np.abs(x) if law.startswith("half") else x).float()


def seen(*data: Tensor, observers=OBSERVERS) -> Collector:
    collector = collect(observers, "conv1")
    for x in data:
        collector.update(x)
    return collector


def clip_of(params: QParams, one_sided: bool) -> float:
    steps = params.format.code_max
    return params.scale * (steps if params.format.kind == "int" or one_sided else steps / 2)


def error(x: Tensor, params: QParams) -> float:
    return float(((dequantize(quantize(x, params), params) - x).double() ** 2).mean())


def least_clip(x: Tensor, k: float) -> float:
    """argmin of rounding noise k s**2 P(0 < |x| <= s) plus clipping noise, by trying 4,000 clips."""
    a = x.abs().double().numpy()
    tried = np.linspace(0.02, 1.0, 4000) * a.max()
    a = np.sort(a[a > 0])
    inside = np.searchsorted(a, tried, side="right")
    first, second = (np.append((a**p)[::-1].cumsum()[::-1], 0.0)[inside] for p in (1, 2))
    beyond = len(a) - inside
    return float(tried[np.argmin(k * tried**2 * inside + second - 2 * tried * first + beyond * tried**2)])


# -- every observer ---------------------------------------------------------------------------------------------------


@laws
@given(batches, formats)
def test_every_range_holds_zero_exactly_and_is_finite(values, format):
    collector = seen(*(torch.tensor([batch]) for batch in values))
    for name in OBSERVERS:
        params = collector.params(format, name)
        assert params.format == format and 0.0 < params.scale < np.inf
        assert format.code_min <= params.zero_point <= format.code_max
        assert dequantize(quantize(torch.zeros(1), params), params) == 0.0
        assert params.scale <= collector.params(format, "min_max").scale * (1 + 1e-6), "wider than what was seen"


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 2.0**-140])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", OBSERVERS)
def test_a_constant_tensor_stays_what_it_is_up_to_a_step(name, text, value):
    x = torch.full((4, 5), value)
    params = seen(x, x, observers=[name]).params(Format.parse(text))
    if name == "cross_entropy":  # equal logits say nothing, whatever the range
        assert params.scale > 0
    elif abs(value) > 1e-37:
        got = dequantize(quantize(x, params), params)
        assert torch.allclose(got, x, rtol=0.25 if text in {"int2", "uint2"} else 0.08)


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_but_zeros_has_scale_one(name):
    params = seen(torch.zeros(2, 3), torch.zeros(1, 3), observers=[name]).params(Format.parse("uint4"))
    assert (params.scale, params.zero_point) == (1.0, 0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", OBSERVERS)
def test_values_that_are_no_numbers_are_refused_and_change_nothing(name, bad):
    collector = seen(bell("gauss", 60).reshape(3, 20), observers=[name])
    before = collector.params(Format.parse("int4"))
    with pytest.raises(DataError, match=r"^conv1: the values hold NaN or infinity"):
        collector.update(torch.tensor([[1.0, bad] * 10]))
    assert collector.params(Format.parse("int4")) == before


@pytest.mark.parametrize("name", OBSERVERS)
def test_no_data_is_refused(name):
    collector = collect([name], "conv1")
    with pytest.raises(DataError, match=r"^conv1: calibration got an empty tensor"):
        collector.update(torch.empty(0, 3))
    with pytest.raises(DataError, match=r"^conv1: no range, because no data was seen"):
        collector.params(Format.parse("uint8"))


@laws
@given(seeds, st.randoms(), st.sampled_from([n for n in OBSERVERS if n != "ema"]), formats)
def test_the_order_of_batches_is_irrelevant_but_to_the_moving_average(seed, random, name, format):
    data = list(bell("gauss", 600, seed).reshape(6, 10, 10))
    data[0][0, 0], data[0][0, 1] = -8.0, 8.0  # the histograms' ranges agree when the widest comes first
    rest = data[1:]
    random.shuffle(rest)
    one = seen(*data, observers=[name]).params(format)
    other = seen(data[0], *rest, observers=[name]).params(format)
    assert other.scale == pytest.approx(one.scale, rel=1e-6) and other.zero_point == one.zero_point


def test_the_moving_average_weighs_the_last_batches_most():
    small, large = torch.tensor([[-1.0, 1.0]]), torch.tensor([[-3.0, 5.0]])
    format = Format.parse("uint8")
    collector = Collector({"ema": Ema(0.25)})
    collector.update(small)
    collector.update(large)
    assert collector.params(format) == affine_params(-1.5, 2.0, format)
    other = Collector({"ema": Ema(0.25)})
    other.update(large)
    other.update(small)
    assert other.params(format) == affine_params(-2.5, 4.0, format)


def test_memory_does_not_grow_with_the_data():
    collector = seen(torch.randn(700, 100, generator=torch.Generator().manual_seed(0)))  # fills the reservoir
    before = collector.nbytes
    for i in range(20):
        collector.update(torch.randn(50, 100, generator=torch.Generator().manual_seed(i)) * 2.0**i)
    assert collector.nbytes == before < 2**20


def test_all_observers_share_one_histogram():
    x = bell("gauss", 1000).reshape(10, 100)
    together = seen(x, x * 3)
    assert len(together.statistics) == 4  # histogram, extremes, decayed extremes, rows
    for name in OBSERVERS:
        assert together.params(Format.parse("uint4"), name) == seen(x, x * 3, observers=[name]).params(
            Format.parse("uint4")
        )


def test_names_are_checked():
    with pytest.raises(RecipeError, match=r"unknown observer 'octave'; did you mean octav"):
        collect(["octave"])
    with pytest.raises(RecipeError, match=r"conv1: observer 'kl' is none of mse, octav"):
        seen(torch.ones(1), observers=["mse", "octav"]).params(Format.parse("int8"), "kl")
    for wrong in (lambda: Ema(0.0), lambda: Ema(1.5), lambda: Percentile(0.0), lambda: Percentile(101.0)):
        with pytest.raises(RecipeError):
            wrong()


def test_any_shape_and_type_will_do():
    format = Format.parse("uint8")
    for x in (torch.tensor(2.0), torch.tensor([1.0, 2.0]), torch.tensor([[[1, 2]]]), torch.tensor([2.0]).bfloat16()):
        for name in OBSERVERS:
            assert seen(x, observers=[name]).params(format).scale > 0


# -- the histogram they share -------------------------------------------------------------------------------------------


@laws
@given(seeds, st.integers(-90, 90), st.booleans())
def test_counts_are_those_of_torch(seed, exponent, relu):
    x = bell("gauss", 3000, seed) * 2.0**exponent
    observer = HistogramObserver()
    observer.update(x.relu() if relu else x)
    wanted = torch.histc(x.relu() if relu else x, BINS, observer.low, observer.high)
    assert (observer.counts == wanted.numpy()).all()


@laws
@given(seeds, st.booleans(), st.integers(1, 4))
def test_native_counts_are_those_of_numpy_with_any_number_of_threads(seed, relu, threads):
    x = bell("gauss", 300_000, seed)
    x = x.relu() if relu else x
    before = torch.get_num_threads()
    found = []
    for backend in ("native", "reference"):
        torch.set_num_threads(threads)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("haqsearch.calibrate.histogram.best_backend", lambda backend=backend: backend)
            observer = HistogramObserver()
            observer.update(x)
            observer.update(x * 3)
        torch.set_num_threads(before)
        found.append(observer.counts)
    assert (found[0] == found[1]).all()


def test_the_native_histogram_has_a_bin_for_any_value():
    """Observers refuse what is not finite before; the kernel by itself reads and writes nothing outside all the same."""
    native = pytest.importorskip("haqsearch.kernels.native", reason="the native kernels are not built")
    counts = torch.zeros(8, dtype=torch.int64)
    native.histogram(torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38, -5.0, 2.5]), 0.0, 1.0, counts)
    assert counts.tolist() == [3, 0, 1, 0, 0, 0, 0, 2]


# -- each of them -------------------------------------------------------------------------------------------------------


@laws
@given(seeds, st.integers(-20, 20), st.booleans(), formats)
def test_the_range_of_least_squared_error_is_the_best_of_those_tried(seed, exponent, relu, format):
    """Each of the 191 made into parameters and applied to the bins' centres, the widest first."""
    x = bell("half-laplace" if relu else "gauss", 3_000, seed) * 2.0**exponent
    observer = HistogramObserver()
    observer.update(x)
    centres = observer.low + (np.arange(BINS) + 0.5) * (observer.width / BINS)

    def loss(params):
        codes = np.clip(np.rint(centres / params.scale) + params.zero_point, format.code_min, format.code_max)
        return float(np.dot(observer.counts, ((codes - params.zero_point) * params.scale - centres) ** 2))

    low, high = min(observer.minimum, 0.0), max(observer.maximum, 0.0)
    tried = [affine_params(low * part, high * part, format) for part in np.linspace(0.05, 1.0, 191)]
    found = observer.mse(format)
    assert found in tried
    assert loss(found) == pytest.approx(min(map(loss, tried)), rel=1e-9)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_range_beyond_float32_is_refused():
    observer = HistogramObserver()
    observer.update(torch.tensor([-3.4e38, 3.4e38]))
    with pytest.raises(DataError, match="beyond float32"):
        observer.mse(Format("uint", 1))


@laws
@given(st.lists(st.tuples(st.integers(1, 4), seeds), min_size=1, max_size=5), formats)
def test_mean_of_extremes_is_numpys(parts, format):
    data = [torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 2, 3)).astype("f4")) for n, seed in parts]
    flat = torch.cat(data).flatten(1).double().numpy()
    low, high = flat.min(1).mean(), flat.max(1).mean()
    got = seen(*data, observers=["mean_extremes"]).params(format)
    wanted = affine_params(min(low, 0.0), max(high, 0.0), format)
    assert got.scale == pytest.approx(wanted.scale, rel=1e-6) and abs(got.zero_point - wanted.zero_point) <= 1


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("law", LAWS)
def test_percentile_is_exact_to_a_bin(law, percent):
    x = bell(law, 20_001)
    collector = Collector({"percentile": Percentile(percent)})
    for part in x.split(1000):
        collector.update(part)
    (histogram,) = collector.statistics.values()
    width = histogram.width / BINS
    wanted = float(np.quantile(x.abs().double().numpy(), percent / 100, method="inverted_cdf"))
    clip = clip_of(collector.params(Format.parse("int8")), False)
    assert (
        wanted - 1e-6 <= clip <= wanted + 2 * width
    )  # folded halves may be shifted against each other by part of a bin


@laws
@given(seeds, st.sampled_from(LAWS), formats)
def test_no_shrunken_range_has_less_error_on_the_histogram_than_mse(seed, law, format):
    collector = seen(*bell(law, 2000, seed).reshape(4, 10, 50), observers=["mse", "min_max"])
    (histogram,) = collector.statistics.values()
    centres = torch.from_numpy(histogram.low + (np.arange(BINS) + 0.5) * (histogram.width / BINS))

    def on_histogram(params):
        codes = ((centres / params.scale).round() + params.zero_point).clamp(format.code_min, format.code_max)
        return float(
            (torch.from_numpy(histogram.counts) * ((codes - params.zero_point) * params.scale - centres) ** 2).sum()
        )

    best = on_histogram(collector.params(format, "mse"))
    low, high = min(histogram.minimum, 0.0), histogram.maximum
    for fraction in np.linspace(0.05, 1.0, 191)[::5]:
        assert best <= on_histogram(affine_params(low * fraction, high * fraction, format)) * (1 + 1e-12)


@laws
@given(seeds, st.sampled_from(LAWS), st.sampled_from(["int", "uint"]))
def test_more_bits_never_raise_the_error_of_mse(seed, law, kind):
    """Of bells: values that lie on few points may suit the fewer levels better."""
    x = bell(law, 5000, seed)
    collector = seen(x.reshape(10, -1), observers=["mse"])
    errors = [error(x, collector.params(Format(kind, bits))) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("text", ["int3", "int4", "int6", "int8", "uint2", "uint3", "uint4", "uint6", "uint8"])
@pytest.mark.parametrize("law", [*LAWS, "relu"])
def test_octav_is_the_brute_force_optimum_within_one_percent(law, text):
    format = Format.parse(text)
    x = bell("gauss").relu() if law == "relu" else bell(law)
    one_sided = float(x.min()) >= 0
    clip = clip_of(seen(x.reshape(100, -1), observers=["octav"]).params(format), one_sided)
    step = (1 if format.kind == "int" or one_sided else 2) / format.code_max
    if clip < 0.98 * float(x.abs().max()):  # otherwise the range seen ends first
        assert clip == pytest.approx(least_clip(x, step**2 / 12), rel=0.01)


@pytest.mark.parametrize("name", ["octav", "aciq"])
@pytest.mark.parametrize("text", ["int3", "int4", "int6", "uint2", "uint4", "uint6"])
@pytest.mark.parametrize("law", LAWS)
def test_octav_and_aciq_have_nearly_the_least_error_there_is(law, text, name):
    """Their model of rounding noise aside: the real error of real codes, against 60 clips around theirs."""
    format, x = Format.parse(text), bell(law, 50_000)
    params = seen(x.reshape(100, -1), observers=[name]).params(format)
    clip = clip_of(params, law.startswith("half"))
    low, high = float(x.min()), float(x.max())
    least = min(error(x, affine_params(max(low, -s), min(high, s), format)) for s in np.linspace(0.6, 1.5, 60) * clip)
    assert error(x, params) <= least * 1.04


@pytest.mark.parametrize(
    ("law", "times", "wanted"), [("laplace", 1.0, 5.03), ("gauss", 1.0, 2.55), ("laplace", 7.0, 5.03)]
)
def test_aciq_chooses_the_law_and_the_clip_of_the_paper(law, times, wanted):
    """Banner et al. give clips at 4 bits for steps of 2 / 2**4; uint4 has 15 steps where they count 16."""
    clip = clip_of(seen(bell(law).reshape(100, -1) * times, observers=["aciq"]).params(Format.parse("uint4")), False)
    assert clip == pytest.approx(wanted * times, rel=0.03)


def test_aciq_leaves_zeros_out_of_half_a_bell():
    full, half = bell("gauss"), bell("gauss").relu()
    clip = {}
    for name, x in {"abs": full.abs(), "relu": half}.items():
        collector = Collector({"aciq": Aciq()})
        collector.update(x.reshape(100, -1))
        clip[name] = clip_of(collector.params(Format.parse("uint4")), True)
    assert clip["relu"] == pytest.approx(clip["abs"], rel=0.01)


@pytest.mark.parametrize("text", TEXTS)
def test_kl_cuts_a_heavy_tail(text):
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, 100_000).clip(-40, 40)).float()
    for data in (x, x.relu()):
        collector = seen(data.reshape(100, -1), observers=["kl", "min_max"])
        assert (
            collector.params(Format.parse(text), "kl").scale
            < 0.8 * collector.params(Format.parse(text), "min_max").scale
        )


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_kl_leaves_a_uniform_tensor_as_it_is(text, low):
    collector = seen(torch.linspace(low, 1.0, 200_000).reshape(100, -1), observers=["kl", "min_max"])
    wanted = collector.params(Format.parse(text), "min_max").scale
    assert collector.params(Format.parse(text), "kl").scale == pytest.approx(wanted, rel=2 / 512)


def test_a_spike_of_zeros_does_not_rule_kl():
    x = bell("gauss").relu()
    collector = seen(x.reshape(100, -1), observers=["kl", "min_max"])
    format = Format.parse("uint8")
    assert error(x, collector.params(format, "kl")) < 2 * error(x, collector.params(format, "min_max"))


def test_cross_entropy_is_no_worse_than_min_max_and_mse_on_logits():
    logits = bell("gauss", 4000).reshape(400, 10) * 3 + torch.arange(10.0)
    collector = seen(*logits.split(50))

    def entropy(params):
        got = torch.log_softmax(dequantize(quantize(logits, params), params), 1)
        return -float((torch.softmax(logits, 1) * got).sum(1).mean())

    for text in ("uint3", "uint4", "int4"):
        least = entropy(collector.params(Format.parse(text), "cross_entropy"))
        assert least <= entropy(collector.params(Format.parse(text), "min_max")) + 1e-6
        assert least <= entropy(collector.params(Format.parse(text), "mse")) * 1.001


def test_the_reservoir_keeps_whole_samples_evenly_chosen():
    from haqsearch.calibrate.statistics import Batch

    reservoir = Reservoir(elements=400, seed=0, name="logits")
    rows = torch.arange(4000.0)[:, None].repeat(1, 2)
    for part in rows.split(100):
        reservoir.add(Batch.of(part, "logits"))
    kept = reservoir.values
    assert kept.shape == (200, 2) and (kept[:, 0] == kept[:, 1]).all()
    assert len(kept[:, 0].unique()) == 200
    assert abs(float(kept[:, 0].mean()) - 2000) < 300
    with pytest.raises(DataError, match="logits: a sample of 3 values after samples of 2"):
        reservoir.add(Batch.of(torch.ones(1, 3), "logits"))
