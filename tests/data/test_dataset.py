from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.data import DataSet, split
from haqsearch.errors import DataError

from .laws import laws


def _numbered(n: int, tests: int = 0) -> DataSet:
    """Every sample is its own number, so that where it went can be seen."""
    numbers = torch.arange(n + tests)
    x = numbers.float()[:, None]
    if not tests:
        return DataSet("numbers", x, numbers)
    return DataSet("numbers", x[:n], numbers[:n], x[n:], numbers[n:])


sizes = st.tuples(*[st.integers(1, 12)] * 3, st.integers(0, 12))


def _numbers(part) -> list[int]:
    assert part[0][:, 0].tolist() == part[1].tolist()  # inputs and labels moved together
    return part[1].tolist()


@laws
@given(sizes, st.integers(0, 2**31), st.booleans())
def test_splits_are_disjoint_and_of_the_sizes_asked_for(case, seed, has_test):
    calibrate, search, report, spare = case
    n = calibrate + search + spare + (0 if has_test else report)
    data = _numbered(n, report if has_test else 0)
    cut = split(data, calibrate, search, report, seed)
    parts = [_numbers(p) for p in (cut.train, cut.search, cut.report)]
    assert sorted(itertools.chain(*parts)) == list(
        range(n + (report if has_test else 0))
    )  # disjoint, and nothing is lost
    assert [len(p) for p in parts] == [calibrate + spare, search, report]
    assert _numbers(cut.calibrate) == parts[0][:calibrate]
    if has_test:
        assert parts[2] == list(range(n, n + report))


@laws
@given(st.integers(0, 2**31))
def test_the_seed_fixes_the_splits(seed):
    data = _numbered(200)
    a, b, other = split(data, 20, 30, 40, seed), split(data, 20, 30, 40, seed), split(data, 20, 30, 40, seed + 1)
    for name in ("train", "calibrate", "search", "report"):
        assert _numbers(getattr(a, name)) == _numbers(getattr(b, name))
    assert _numbers(a.search) != _numbers(other.search)


def test_the_seed_does_not_touch_the_test_part_nor_the_global_generator():
    data = _numbered(30, 10)
    state = torch.get_rng_state()
    reports = [_numbers(split(data, 5, 5, 6, seed).report) for seed in range(3)]
    assert reports == [list(range(30, 36))] * 3
    assert torch.equal(torch.get_rng_state(), state)


def test_report_is_the_test_part_or_a_quarter_unless_said_otherwise():
    assert len(split(_numbered(30, 10), 5, 5, None, 0).report[1]) == 10
    assert len(split(_numbered(41), 5, 5, None, 0).report[1]) == 10


@pytest.mark.parametrize("name", ["calibrate", "search", "report"])
@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_split_is_refused_by_name(name, size):
    wanted = {"calibrate": 5, "search": 5, "report": 5, name: size}
    with pytest.raises(DataError, match=rf"split\.{name} is {size}: every split needs at least one sample"):
        split(_numbered(50), **wanted, seed=0)


def test_splits_that_do_not_fit_are_refused_with_both_numbers():
    with pytest.raises(DataError, match="numbers has 29 samples, the splits ask for 30"):
        split(_numbered(29), 10, 10, 10, 0)
    assert len(split(_numbered(30), 10, 10, 10, 0).train[1]) == 10
    with pytest.raises(DataError, match="numbers has 19 samples, the splits ask for 20"):
        split(_numbered(19, 10), 10, 10, 10, 0)
    with pytest.raises(DataError, match=r"numbers has 10 test samples, split\.report asks for 11"):
        split(_numbered(30, 10), 10, 10, 11, 0)


def test_the_augmentation_goes_along():
    def same(x, generator):
        return x

    data = DataSet("d", torch.zeros(9, 1), torch.zeros(9, dtype=torch.int64), augment=same)
    assert split(data, 2, 2, 2, 0).augment is same


X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
NAN = torch.full((4, 3), torch.nan)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((X[:0], Y[:0]), "inputs is empty"),
        ((X, Y[:3]), "4 inputs, but 3 labels"),
        ((X.double(), Y), "inputs must be float32 with int64 labels, not torch.float64"),
        ((X, Y.int()), "inputs must be float32 with int64 labels, not torch.float32, torch.int32"),
        ((NAN, Y), "inputs hold NaN or infinity"),
        ((X + torch.inf, Y), "inputs hold NaN or infinity"),
        ((X, Y, X[:0], Y[:0]), "test_inputs is empty"),
        ((X, Y, X, Y[:3]), "4 test_inputs, but 3 labels"),
        ((X, Y, X.half(), Y), "test_inputs must be float32"),
        ((X, Y, NAN, Y), "test_inputs hold NaN or infinity"),
        ((X, Y, X, None), "test_inputs and test_labels come together"),
        ((X, Y, None, Y), "test_inputs and test_labels come together"),
    ],
)
def test_a_data_set_that_is_none_is_refused(parts, said):
    with pytest.raises(DataError) as caught:
        DataSet("mine", *parts)
    assert str(caught.value).startswith("data set mine: ")
    assert said in str(caught.value)
