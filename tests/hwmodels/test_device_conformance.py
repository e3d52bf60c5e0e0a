from __future__ import annotations

import dataclasses

import pytest

import hwmodels
from haqsearch.spec import Choice, LayerSpec, ModelSpec
from haqsearch.testing.hardware_cases import HardwareModelCases


class TestBundledDevices(HardwareModelCases):
    @pytest.fixture(scope="class", params=hwmodels.list_profiles())
    def device(self, request):
        return hwmodels.load(request.param)


class Faulty(hwmodels.HardwareModel):
    """A device that wraps a good one and breaks one promise."""

    def __init__(self, fault: str) -> None:
        self.good = hwmodels.load("bismo-edge")
        self.fault, self.calls = fault, 0
        self.name = self.summary = fault
        self.metrics = ("latency",) if fault == "metric" else self.good.metrics

    @property
    def digest(self) -> str:
        return self.good.digest

    def stored(self, layer: LayerSpec, choice: Choice) -> Choice:
        if self.fault != "storage":
            return choice
        return dataclasses.replace(choice, weight=dataclasses.replace(choice.weight, width=1))

    def bind(self, model: ModelSpec) -> hwmodels.HardwareModel:
        return hwmodels.load("bitfusion") if self.fault == "bind" else self

    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        return self.fault == "supports" or self.good.supports(layer, choice)

    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> hwmodels.LayerCost:
        self.calls += 1
        cost = self.good.cost(layer, choice, max(batch, 1) if self.fault == "batch" else batch)
        latency = {
            "nan": float("nan"),
            "negative": -1.0,
            "random": float(self.calls),
            "per_sample": cost.values["latency_s"] / max(batch, 1) ** 2,
        }.get(self.fault, cost.values["latency_s"])
        return dataclasses.replace(cost, values={**cost.values, "latency_s": latency})


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("metric", "test_metrics_are_known_and_carry_their_unit"),
        ("supports", "test_supports_is_honest"),
        ("batch", "test_a_batch_of_nothing_is_refused"),
        ("nan", "test_costs_are_finite_and_not_negative"),
        ("negative", "test_costs_are_finite_and_not_negative"),
        ("random", "test_same_question_same_answer"),
        ("per_sample", "test_more_samples_never_cost_less"),
        ("storage", "test_memory_holds_what_is_asked_for"),
        ("bind", "test_a_network_can_be_bound"),
        ("random", "test_table_equals_the_layers_one_by_one"),
    ],
)
def test_the_kit_catches(fault, test):
    with pytest.raises(AssertionError, match=fault):
        getattr(HardwareModelCases(), test)(Faulty(fault))
