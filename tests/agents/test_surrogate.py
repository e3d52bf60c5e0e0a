"""The surrogate is exact Gaussian regression: checked against the textbook formula written out, and on what it has to learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.agents.surrogate import Surrogate

SIZES = (3, 4, 2, 5, 3)
RISES = [np.sort(np.random.default_rng(v).lognormal(-2, 1, n))[::-1] for v, n in enumerate(SIZES)]


def policies(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.unique(np.stack([rng.integers(n, size=count) for n in SIZES], 1), axis=0)


def additive(keys: np.ndarray, factors=(1.0, 1.0, 1.0, 1.0, 1.0)) -> np.ndarray:
    return 0.05 + sum(f * r[keys[:, v]] for v, (f, r) in enumerate(zip(factors, RISES, strict=True)))


def kernel(model: Surrogate, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The covariance as the module's formula has it, term by term."""
    p, rows = model.priors, []
    for x in one:
        row = []
        for y in other:
            s = [RISES[v][c] / model._weight for v, c in enumerate(x)]
            t = [RISES[v][c] / model._weight for v, c in enumerate(y)]
            total = 1.0 + 4.0 * sum(s) * sum(t) + p.factor**2 * sum(a * b for a, b in zip(s, t, strict=True))
            total += (p.factor / 2) ** 2 * sum(a * b for a, b, c, d in zip(s, t, x, y, strict=True) if c == d)
            row.append(total + p.residual**2 * np.exp(-np.abs(x - y).sum() / p.length))
        rows.append(row)
    return np.array(rows)


def dense(model: Surrogate, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation by the formulas with an explicit inverse."""
    inverse = np.linalg.inv(kernel(model, model.keys, model.keys) + 1e-4 * np.eye(len(model.keys)))
    cross = kernel(model, keys, model.keys)
    mean = 1.0 + cross @ inverse @ (model._y - 1.0)
    variance = np.diag(kernel(model, keys, keys)) - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    return model.unit * mean, model.unit * np.sqrt(np.maximum(variance, 1e-12))


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 25), st.integers(0, 2**31))
def test_mean_and_deviation_are_those_of_the_textbook(count, seed):
    keys = policies(count, seed)
    losses = additive(keys) * np.random.default_rng(seed).lognormal(0, 0.1, len(keys))
    model, others = Surrogate(RISES, keys, losses), policies(20, seed + 1)
    for got, expected in zip(model.predict(others), dense(model, others), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6 * losses.min())


def test_what_was_measured_is_known_and_the_rest_is_less_sure():
    keys = policies(12, 0)
    losses = additive(keys)
    model = Surrogate(RISES, keys, losses)
    mean, deviation = model.predict(keys)
    np.testing.assert_allclose(mean, losses, rtol=0.05)
    far = np.array([k for k in policies(200, 1) if not (k == keys).all(1).any()])
    assert np.median(model.predict(far)[1]) > np.median(deviation)


def test_a_variable_that_the_table_underrates_is_found_out():
    factors = (1.0, 4.0, 1.0, 1.0, 1.0)
    keys, others = policies(40, 2), policies(120, 3)
    model = Surrogate(RISES, keys, additive(keys, factors))
    truth = additive(others, factors)
    error = np.abs(model.predict(others)[0] - truth)
    assert np.median(error / truth) < 0.05 < np.median(np.abs(additive(others) - truth) / truth)
    learned = model.additive()
    assert learned[1][0] - learned[1][-1] > 2 * (learned[0][0] - learned[0][-1]) * np.ptp(RISES[1]) / np.ptp(RISES[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 10))
def test_expected_improvement_is_never_negative_and_grows_with_the_bar(seed, bar):
    keys = policies(10, seed)
    model, others = Surrogate(RISES, keys, additive(keys)), policies(30, seed + 1)
    low, high = model.improvement(others, bar), model.improvement(others, 2 * bar)
    assert (low >= -1e-9).all()
    assert (high >= low - 1e-9).all()


def test_equal_losses_and_zeros_are_survived():
    keys = policies(8, 4)
    for losses in (np.zeros(len(keys)), np.full(len(keys), 0.3)):
        assert np.isfinite(Surrogate(RISES, keys, losses).improvement(policies(20, 5), float(losses.min()))).all()
    flat = [np.zeros(n) for n in SIZES]
    assert np.isfinite(Surrogate(flat, keys, additive(keys)).predict(keys)[0]).all()


def test_the_scale_of_the_losses_makes_no_difference():
    keys, others = policies(15, 6), policies(30, 7)
    losses = additive(keys) * np.random.default_rng(0).lognormal(0, 0.2, len(keys))
    one, other = Surrogate(RISES, keys, losses), Surrogate(RISES, keys, 1000 * losses)
    assert other.predict(others)[0] == pytest.approx(1000 * one.predict(others)[0], rel=1e-9)


@settings(max_examples=15)
@given(st.integers(3, 25), st.integers(0, 2**31), st.floats(0, 30))
def test_doubt_believes_what_explains_the_losses_about_as_well_and_takes_the_widest_of_it(count, seed, doubt):
    keys = policies(count, seed)
    losses = additive(keys) * np.random.default_rng(seed).lognormal(0, 0.1, len(keys))
    likeliest, doubting, other = (Surrogate(RISES, keys, losses, d) for d in (0.0, doubt, doubt + 5))

    def likelihood(model: Surrogate) -> float:
        return model._likelihood(model._parts(model._own, model._own).kernel(model.priors))

    assert likelihood(doubting) >= likelihood(likeliest) - doubt - 1e-9
    assert likeliest.priors.factor <= doubting.priors.factor <= other.priors.factor


def test_doubt_finds_room_where_a_search_has_not_been():
    # All but one of the policies differ in the first two variables alone: what is learned there says little of the others.
    seen = np.array([[a, b, 0, 2, 1] for a in range(3) for b in range(4)] + [[0, 0, 1, 4, 2]])
    sure, doubting = (Surrogate(RISES, seen, additive(seen), d) for d in (0.0, 100.0))
    elsewhere = np.array([[0, 0, 1, 0, 0], [1, 1, 0, 4, 2]])
    assert (doubting.predict(elsewhere)[1] > sure.predict(elsewhere)[1]).all()
