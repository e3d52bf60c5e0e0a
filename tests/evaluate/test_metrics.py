from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.errors import ModelError
from haqsearch.evaluate import score_logits

LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=6).map(torch.tensor)


def test_scores_by_hand():
    logits = torch.tensor([[log(1.0), log(3.0)], [log(4.0), log(1.0)], [log(1.0), log(1.5)]])
    reference = torch.tensor([[0.0, 0.0], [log(4.0), 0.0], [log(3.0), 0.0]])
    scores = score_logits(logits, torch.tensor([1, 1, 1]), reference)
    assert scores.samples == 3
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.loss == pytest.approx(-(log(0.75) + log(0.2) + log(0.6)) / 3)
    first = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)
    third = 0.75 * log(0.75 / 0.4) + 0.25 * log(0.25 / 0.6)
    assert scores.kl == pytest.approx((first + 0 + third) / 3)


@settings(deadline=None)
@given(LOGITS, st.data())
def test_kl_is_a_divergence(reference, data):
    labels = torch.zeros(len(reference), dtype=torch.int64)
    assert score_logits(reference, labels, reference).kl == 0
    assert score_logits(reference + 3.0, labels, reference).kl == pytest.approx(0, abs=1e-6)  # a shift is no difference
    rows = st.lists(st.floats(-30, 30), min_size=3, max_size=3)
    other = torch.tensor(data.draw(st.lists(rows, min_size=len(reference), max_size=len(reference))))
    assert score_logits(other, labels, reference).kl >= -1e-12


@settings(deadline=None)
@given(LOGITS)
def test_loss_and_accuracy_do_not_know_the_reference(logits):
    labels = torch.arange(len(logits)) % 3
    a, b = (score_logits(logits, labels, reference) for reference in (logits, torch.zeros_like(logits)))
    assert (a.loss, a.accuracy) == (b.loss, b.accuracy)
    chance = torch.tensor([[exp(v) for v in row] for row in logits.tolist()], dtype=torch.float64)
    chance = chance[torch.arange(len(labels)), labels] / chance.sum(1)
    assert a.loss == pytest.approx(float(-chance.log().mean()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_refused(value):
    logits = torch.zeros(4, 3)
    logits[2, 1] = value
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        score_logits(logits, torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3))


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ModelError, match=r"the network gives \(3, 2\) per sample"):
        score_logits(torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3, 2))


def test_a_label_without_a_class_is_refused():
    with pytest.raises(ModelError, match="a label is 3, but the network has 3 classes"):
        score_logits(torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), torch.zeros(4, 3))
