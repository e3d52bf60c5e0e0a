from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import random_policy

from haqsearch.errors import DataError
from haqsearch.evaluate import Evaluator, float_logits, prepare_network, score_logits
from haqsearch.models.digits_cnn import digits_cnn
from haqsearch.runtime import run_program
from haqsearch.spec import FLOAT32, Choice, Format, Limit, Policy, violation


class Bits:
    """Prices a policy at the sum of its weights' widths."""

    metrics = ("size_bytes",)

    def costs(self, policy):
        return {"size_bytes": float(sum(choice.weight.width for choice in policy.values()))}


LIMITS = (Limit("size_bytes", 60.0, "size_bytes <= 60 B"),)


@pytest.fixture(scope="module")
def evaluator(digits):
    return Evaluator(*digits, Bits(), LIMITS)


def uniform(evaluator, text):
    return Policy.uniform(evaluator.prepared.spec, Choice.parse(text))


def test_the_score_is_the_integer_programs(evaluator):
    policy = random_policy(evaluator.prepared, 3)
    inputs, labels = evaluator.splits.search
    logits = run_program(evaluator.prepared.lower(policy), inputs)
    scores = score_logits(logits, labels, float_logits(evaluator.prepared.graph, inputs))
    got = evaluator.evaluate(policy)
    assert got.ok
    assert (got.accuracy, got.loss, got.kl, got.samples) == (scores.accuracy, scores.loss, scores.kl, len(labels))
    assert got.metrics == Bits().costs(policy)
    assert got.violation == violation(got.metrics, LIMITS)
    assert got.fidelity == "ptq"


def test_evaluating_twice_gives_the_same(evaluator):
    policy = random_policy(evaluator.prepared, 4)
    assert replace(evaluator.evaluate(policy), seconds=0) == replace(evaluator.evaluate(policy), seconds=0)


def test_eight_bits_lose_nothing_and_two_bits_much(evaluator):
    reference = evaluator.float_scores("search")
    assert reference.kl == 0
    assert reference.accuracy > 0.85
    eight, two = (evaluator.evaluate(uniform(evaluator, text)) for text in ("w8a8", "w2a2"))
    assert abs(eight.accuracy - reference.accuracy) <= 0.01
    assert eight.kl < 0.02
    assert two.accuracy < reference.accuracy - 0.2
    assert two.kl > 20 * eight.kl


def test_the_splits_are_scored_apart(evaluator):
    policy = uniform(evaluator, "w4a4")
    assert evaluator.evaluate(policy, "search").kl != evaluator.evaluate(policy, "report").kl


def test_a_policy_that_cannot_be_lowered_is_a_value(evaluator):
    policy = Policy({**uniform(evaluator, "w8a8"), "stem.conv": Choice(FLOAT32, FLOAT32)})
    got = evaluator.evaluate(policy)
    assert not got.ok
    assert (got.accuracy, got.loss, got.kl) == (None, None, None)
    assert "stem.conv" in got.error
    assert got.seconds >= 0


@pytest.mark.parametrize("weight", ["int16", "uint8"])
def test_weights_no_kernel_takes_are_a_value(evaluator, weight):
    got = evaluator.evaluate(uniform(evaluator, "w8a8").replace("classifier", weight=Format.parse(weight)))
    assert "classifier" in got.error


def test_changing_one_layer_quantizes_that_layer_only(evaluator):
    prepared, policy = evaluator.prepared, uniform(evaluator, "w7a8")
    changed = policy.replace("conv1.conv", weight=Format("int", 3))
    first = evaluator.prepared.lower(policy)
    made = {layer: prepared.weight(layer, choice.weight) for layer, choice in policy.items()}
    second = evaluator.prepared.lower(changed)
    assert all(prepared.weight(layer, choice.weight) is made[layer] for layer, choice in policy.items())
    for step in first.instructions:
        if step.layer:
            same = second.constants[f"{step.name}.weight"] is first.constants[f"{step.name}.weight"]
            assert same == (step.layer != "conv1.conv")


def test_nan_in_the_calibration_split_is_refused(digits):
    _, splits = digits
    images = splits.calibrate[0].clone()
    images[200, 0, 3, 3] = torch.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        prepare_network(digits_cnn().eval(), replace(splits, calibrate=(images, splits.calibrate[1])), "digits_cnn")


# -- why kl is the objective by default -----------------------------------------------------------------------------


def spearman(a, b):
    def ranks(values):
        values = torch.tensor(values, dtype=torch.float64)
        return (values[:, None] > values).double().sum(1) + 0.5 * (values[:, None] == values).double().sum(1)

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def agreement(evaluator, policies):
    """Spearman's rank correlation with the report split: (kl to kl, accuracy to kl, kl to accuracy, accuracy to accuracy)."""
    search = [evaluator.evaluate(policy) for policy in policies]
    report = [evaluator.evaluate(policy, "report") for policy in policies]
    kl, accuracy = ([e.kl for e in search], [-e.accuracy for e in search])
    report_kl, report_accuracy = ([e.kl for e in report], [-e.accuracy for e in report])
    return (
        spearman(kl, report_kl),
        spearman(accuracy, report_kl),
        spearman(kl, report_accuracy),
        spearman(accuracy, report_accuracy),
    )


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)


def test_kl_ranks_policies_at_least_as_well_as_accuracy_on_digits(evaluator):
    """From 3 bits on: at 4 and more all are so good that chance ranks them, on some of the networks that machines train."""
    kl, accuracy, _, _ = agreement(evaluator, [random_policy(evaluator.prepared, seed, 3) for seed in range(30)])
    print(f"digits_cnn: kl {kl:.3f}, accuracy {accuracy:.3f}")
    assert kl >= accuracy
    assert kl > 0.9


@pytest.mark.data
@pytest.mark.slow
def test_kl_ranks_policies_at_least_as_well_as_accuracy_on_cifar10(resnet20_cifar10):
    ready, splits = resnet20_cifar10
    evaluator = Evaluator(ready, splits, Bits(), LIMITS)
    figures = agreement(evaluator, [random_policy(ready, seed, 4) for seed in range(15)])
    print("resnet20: kl-kl {:.3f}, accuracy-kl {:.3f}, kl-accuracy {:.3f}, accuracy-accuracy {:.3f}".format(*figures))
    assert figures[0] >= figures[1]
    assert figures[2] >= figures[3] - 0.02
    assert figures[0] > 0.9
