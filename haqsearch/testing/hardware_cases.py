"""Conformance kit for device models: inherit ``HardwareModelCases``, give it your device, run pytest.

    class TestMyDevice(HardwareModelCases):
        @pytest.fixture
        def device(self):
            return hwmodels.load("boards/mine.toml")

Every failure says which promise of ``hwmodels.HardwareModel`` is broken and what to change.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from math import isclose, isfinite
from typing import TYPE_CHECKING

from haqsearch.errors import HardwareError
from haqsearch.spec import METRICS, Choice, Format, LayerSpec, ModelSpec
from haqsearch.spec.policy import FLOAT_CHOICE

if TYPE_CHECKING:
    from hwmodels import HardwareModel

LAYERS = (
    LayerSpec("stem", "conv2d", (3, 32, 32), (16, 3, 3, 3), (16, 16, 16), 110592, 1, (2, 2), (3, 3)),
    LayerSpec("depthwise", "depthwise_conv2d", (16, 16, 16), (16, 1, 3, 3), (16, 16, 16), 36864, 16, (1, 1), (3, 3),
              inputs=("stem",)),
    LayerSpec("pointwise", "conv2d", (16, 16, 16), (24, 16, 1, 1), (24, 16, 16), 98304, inputs=("depthwise",)),
    LayerSpec("grouped", "conv2d", (24, 16, 16), (24, 6, 3, 3), (24, 16, 16), 331776, 4, (1, 1), (3, 3),
              inputs=("pointwise",)),
    LayerSpec("attention", "scaled_dot_product", (24, 256), (), (24, 256), 65536, inputs=("grouped",),
              quantizable=False, reason="no integer kernel"),
    LayerSpec("classifier", "linear", (24,), (10, 24), (10,), 240, has_bias=True, inputs=("attention",)),
)  # fmt: skip
MODEL = ModelSpec("conformance", LAYERS)
CHOICES = (
    *(Choice(Format("int", w), Format("uint", a)) for w, a in product(range(1, 17), repeat=2)),
    FLOAT_CHOICE,
    Choice(FLOAT_CHOICE.weight, Format("uint", 8)),
)


class HardwareModelCases:
    """What every device model has to keep. Subclasses provide the fixture (or attribute) ``device``."""

    def test_describes_itself(self, device: HardwareModel) -> None:
        assert device.name.strip(), "a device needs a name: it is what reports and error messages call it"
        assert device.summary.strip(), f"{device.name}: give one line of summary; `haqsearch` lists devices with it"
        assert device.digest.strip(), f"{device.name}: digest is empty; caches could not tell two devices apart"
        assert device.default_batch >= 1, f"{device.name}: default_batch is {device.default_batch}; it counts samples"

    def test_metrics_are_known_and_carry_their_unit(self, device: HardwareModel) -> None:
        for metric in device.metrics:
            assert metric in METRICS, f"{device.name}: metric {metric!r} is not one of {', '.join(METRICS)}"
        extra = set(device.additive) - set(device.metrics)
        assert not extra, f"{device.name}: {extra} are called additive, but are not among its metrics"

    def test_costs_are_finite_and_not_negative(self, device: HardwareModel) -> None:
        for layer, choice in self._supported(device):
            cost = device.cost(layer, choice, device.default_batch)
            where = f"{device.name}: layer {layer.name} at {choice}"
            assert set(cost.values) == set(device.metrics), (
                f"{where}: cost has {sorted(cost.values)}, metrics promises {sorted(device.metrics)}"
            )
            for metric, value in cost.values.items():
                assert isfinite(value) and value >= 0, f"{where}: {metric} is {value}; a failure is an error"
            assert cost.bound, f"{where}: say in `bound` what limits the layer"
            assert cost.source, f"{where}: say in `source` where the number comes from"

    def test_supports_is_honest(self, device: HardwareModel) -> None:
        for layer, choice in product(LAYERS, CHOICES):
            supported = device.supports(layer, choice)
            where = f"{device.name}: layer {layer.name} at {choice}"
            try:
                device.cost(layer, choice, device.default_batch)
            except HardwareError as error:
                assert not supported, f"{where}: supports() says yes, cost() raises: {error}"
                assert "\n" not in str(error), f"{where}: an error message is one line, this is not: {error}"
            else:
                assert supported, f"{where}: supports() says no, yet cost() answers; raise HardwareError there"

    def test_something_is_supported(self, device: HardwareModel) -> None:
        for layer in LAYERS:
            assert any(device.supports(layer, choice) for choice in CHOICES), (
                f"{device.name}: supports nothing for layer {layer.name} ({layer.op}): it can price no network with one"
            )
        assert device.supports(MODEL["attention"], FLOAT_CHOICE), (
            f"{device.name}: a layer that is not quantizable stays in float32, so float32 must have a price"
        )

    def test_same_question_same_answer(self, device: HardwareModel) -> None:
        for layer, choice in self._supported(device):
            first, second = (device.cost(layer, choice, device.default_batch) for _ in range(2))
            assert first == second, f"{device.name}: layer {layer.name} at {choice} costs {first}, then {second}"

    def test_more_samples_never_cost_less(self, device: HardwareModel) -> None:
        for layer, choice in self._supported(device):
            batches = (1, 2, 3, 8, 16)
            costs = [device.cost(layer, choice, batch).values for batch in batches]
            for metric in device.metrics:
                series = [cost[metric] for cost in costs]
                assert all(x <= y * (1 + 1e-12) for x, y in pairwise(series)), (
                    f"{device.name}: layer {layer.name} at {choice}: {metric} of batches {batches} is {series}; "
                    "costs are for the whole batch, not for one sample"
                )

    def test_a_batch_of_nothing_is_refused(self, device: HardwareModel) -> None:
        layer, choice = next(iter(self._supported(device)))
        try:
            device.cost(layer, choice, 0)
        except HardwareError:
            return
        raise AssertionError(f"{device.name}: batch 0 has a cost; raise HardwareError for a batch below 1")

    def test_table_equals_the_layers_one_by_one(self, device: HardwareModel) -> None:
        choices = [c for c in CHOICES if not c.weight.is_float and any(device.supports(x, c) for x in LAYERS)]
        table, bound = device.table(MODEL, choices), device.bind(MODEL)
        for row, layer in enumerate(LAYERS):
            for column, choice in enumerate(table.choices):
                offered = choice in choices if layer.quantizable else choice == FLOAT_CHOICE
                offered = offered and device.supports(layer, choice)
                for metric in device.additive:
                    cell = table.values[metric][row, column]
                    where = f"{device.name}: table[{metric}] of layer {layer.name} at {choice}"
                    if offered:
                        value = bound.cost(layer, choice, device.default_batch).values[metric]
                        assert isclose(cell, value, rel_tol=1e-12), f"{where} is {cell}, cost() says {value}"
                    else:
                        assert cell == float("inf"), f"{where} is {cell}; what cannot be had costs inf"

    def test_memory_holds_what_is_asked_for(self, device: HardwareModel) -> None:
        for layer, choice in self._supported(device):
            stored, where = device.stored(layer, choice), f"{device.name}: layer {layer.name} at {choice}"
            for role in ("weight", "activation"):
                asked, held = getattr(choice, role), getattr(stored, role)
                assert held.kind == asked.kind and held.width >= asked.width, (
                    f"{where}: stores {held} for {role} {asked}"
                )
                wider = replace(choice, **{role: replace(asked, width=asked.width + 1)})
                if device.supports(layer, wider):
                    more = getattr(device.stored(layer, wider), role)
                    assert held.width <= more.width, f"{where}: {role} is stored as {held}, with one bit more as {more}"

    def test_a_network_can_be_bound(self, device: HardwareModel) -> None:
        bound = device.bind(MODEL)
        assert bound.name == device.name and bound.metrics == device.metrics, (
            f"{device.name}: bind() gives another device, {bound.name}; it is for what depends on the network"
        )
        for layer, choice in self._supported(device):
            where = f"{device.name}: layer {layer.name} at {choice}"
            assert bound.supports(layer, choice), f"{where}: supported on its own, but not as a part of its network"
            cost = bound.cost(layer, choice, device.default_batch)
            assert all(isfinite(value) and value >= 0 for value in cost.values.values()), (
                f"{where}: costs {cost.values}"
            )

    def test_meter_prices_a_network(self, device: HardwareModel) -> None:
        from haqsearch.spec import Policy
        from hwmodels import Meter

        everywhere = [c for c in CHOICES if all(device.supports(x, c) for x in LAYERS if x.quantizable)]
        assert everywhere, f"{device.name}: no choice is supported by every kind of layer"
        meter, bound = Meter(device, MODEL), device.bind(MODEL)
        for choice in everywhere:
            policy = Policy.uniform(MODEL, choice)
            costs = meter.costs(policy)
            for metric in device.additive:
                total = sum(bound.cost(layer, policy[layer.name], meter.batch).values[metric] for layer in LAYERS)
                assert isclose(costs[metric], total, rel_tol=1e-9), (
                    f"{device.name}: {metric} of the network at {choice} is {costs[metric]}, its layers make {total}; "
                    "take the metric out of `additive` if it is no sum"
                )

    @staticmethod
    def _supported(device: HardwareModel) -> list[tuple[LayerSpec, Choice]]:
        return [(layer, choice) for layer, choice in product(LAYERS, CHOICES) if device.supports(layer, choice)]
