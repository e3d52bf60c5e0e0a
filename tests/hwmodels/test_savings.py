from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from device_shapes import conv, linear, models, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.spec import Budget, Choice, LayerSpec, ModelSpec, Policy, SearchSpace
from hwmodels import networks, savings

DEVICES = {name: hwmodels.load(name) for name in hwmodels.list_profiles() if not name.startswith("host")}
LIMITED = (
    ("latency_s",), ("peak_activation_bytes",), ("latency_s", "peak_activation_bytes"), ("latency_s", "energy_j"),
    ("latency_s", "size_bytes"), ("bops",),
)  # fmt: skip


class Rough(hwmodels.HardwareModel):
    """A device on which bits cost what a table of random numbers says, padded storage included."""

    name, summary, digest, metrics = "rough", "anything goes", "0", ("latency_s",)

    def __init__(self, prices: list[int], pad: bool, slowest: bool) -> None:
        self.prices, self.pad, self.slowest = prices, pad, slowest

    @property
    def additive(self) -> tuple[str, ...]:
        return () if self.slowest else self.metrics

    def total(self, metric: str, values: list[float]) -> float:
        return max(values)

    def supports(self, layer: LayerSpec, choice: Choice) -> bool:
        return True

    def stored(self, layer: LayerSpec, choice: Choice) -> Choice:
        return replace(choice, activation=replace(choice.activation, width=8)) if self.pad else choice

    def cost(self, layer: LayerSpec, choice: Choice, batch: int) -> hwmodels.LayerCost:
        place = len(layer.name) + 7 * choice.weight.width + 3 * choice.activation.width + layer.macs
        return hwmodels.LayerCost({"latency_s": float(self.prices[place % len(self.prices)])}, "compute", "made up")


def every(space):
    return [space.policy(key) for key in product(*(range(len(v.candidates)) for v in space.variables))]


def best(policies, worth, meter, limits):
    """Largest worth inside the limits, None if nothing is."""
    inside = (policy for policy in policies if all(limit.met(meter.costs(policy)) for limit in limits))
    return max(map(worth, inside), default=None)


@given(model=models(), device=st.sampled_from(list(DEVICES.values())), metrics=st.sampled_from(LIMITED), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pruning_never_loses_the_best_policy(model, device, metrics, data):
    check(model, device, metrics, data)


@given(
    model=models(), prices=st.lists(st.integers(1, 4), min_size=1, max_size=9), pad=st.booleans(), slowest=st.booleans(),
    metrics=st.sampled_from([m for m in LIMITED if "energy_j" not in m]), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_pruning_is_right_on_devices_that_nobody_would_build(model, prices, pad, slowest, metrics, data):
    check(model, Rough(prices, pad, slowest), metrics, data)


def check(model: ModelSpec, device: hwmodels.HardwareModel, metrics: tuple[str, ...], data: st.DataObject) -> None:
    """Under any limits on ``metrics`` and any accuracy that does not fall with bits, the best remains; every policy that went
    has one that remains, no narrower anywhere and no dearer."""
    meter = hwmodels.Meter(device, model)
    metrics = tuple(metric for metric in metrics if metric in meter.metrics)
    bits = (2, 8) if len(model) > 3 else (2, 4, 8)
    space = SearchSpace.build(model, bits, bits, supports=device.supports)
    pruned = savings.without_dominated(space, meter, metrics)
    before, after = every(space), every(pruned)
    assert all(space.contains(policy) for policy in after)
    weights = {v.name: data.draw(st.integers(0, 5)) for v in space.variables}
    cap = data.draw(st.integers(0, 20))

    def worth(policy: Policy) -> float:
        bits_of = dict(zip([v.name for v in space.variables], space.indices(policy), strict=True))
        return min(sum(weights[name] * index for name, index in bits_of.items()), cap)

    int8 = meter.int8()
    factors = [data.draw(st.sampled_from([0.3, 0.6, 0.9, 1.0])) for _ in metrics]
    limits = [Budget.parse(f"{m} <= {f} * int8").resolve(int8) for m, f in zip(metrics, factors, strict=True)]
    assert best(before, worth, meter, limits) == best(after, worth, meter, limits)
    policy = data.draw(st.sampled_from(before))
    costs, indices = meter.costs(policy), space.indices(policy)
    assert any(
        all(meter.costs(other)[metric] <= costs[metric] for metric in metrics)
        and all(o >= i for o, i in zip(space.indices(other), indices, strict=True))
        for other in after
    )


def test_a_device_of_one_width_leaves_nothing_to_search():
    model = networks.resnet8()
    device = DEVICES["ethos-u55-256"]
    meter = hwmodels.Meter(device, model)
    space = SearchSpace.build(model, range(2, 9), range(2, 9), supports=device.supports)
    pruned = savings.without_dominated(space, meter, ("latency_s", "size_bytes", "peak_activation_bytes"))
    assert pruned.size == 1
    assert pruned.policy([0] * len(pruned.variables)) == Policy.uniform(model, wa(8, 8))
    assert "conv.weight: int2, int3, int4, int5, int6, int7, which buy nothing: on ethos-u55-256" in pruned.removed[0]
    assert savings.without_dominated(pruned, meter, ("latency_s",)) == pruned


def test_widths_that_are_rounded_up_go_when_only_latency_counts():
    model = ModelSpec("m", (conv("a", 64, 64, 3, 16), conv("b", 64, 64, 1, 16)))
    for name, weights in (("mpic", ["int2", "int4", "int8"]), ("cortex-m7", ["int8"]), ("gap8", ["int2", "int8"])):
        meter = hwmodels.Meter(DEVICES[name], model)
        space = SearchSpace.build(model, range(2, 9), (8,), supports=DEVICES[name].supports)
        pruned = savings.without_dominated(space, meter, ("latency_s",))
        assert [str(f) for f in pruned.variables[0].candidates][-1] == "int8"
        assert set(map(str, pruned.variables[0].candidates)) <= set(weights), name
        # Where size counts too, every width that is stored does.
        sized = savings.without_dominated(space, meter, ("latency_s", "size_bytes"))
        assert [str(f) for f in sized.variables[0].candidates] == ["int2", "int4", "int8"]


def test_savings_by_hand():
    class Stream(hwmodels.HardwareModel):
        """Weights and activations arrive side by side, at a cycle a bit."""

        name, summary, digest, metrics = "stream", "max(w, a)", "0", ("latency_s",)

        def supports(self, layer, choice):
            return choice.weight.width != 3

        def cost(self, layer, choice, batch):
            return hwmodels.LayerCost({"latency_s": float(max(choice.weight.width, choice.activation.width))}, "x", "y")

    model = ModelSpec("m", (linear("a", 10, 10), linear("b", 10, 10), linear("c", 10, 10, quantizable=False)))
    policy = Policy({"a": wa(8, 8), "b": wa(4, 2), "c": Choice.parse("float32")})
    a, b = savings.savings(hwmodels.Meter(Stream(), model), policy)
    assert (a.weight, a.activation, a.both) == (0, 0, 0.75)
    assert a.idle == ("weight", "activation")
    assert (b.weight, b.activation, b.both) == (0.5, 0, 0.5)
    assert b.idle == ("activation",)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_savings_are_the_differences_of_costs(name):
    model, device = networks.ds_cnn(), DEVICES[name]
    meter = hwmodels.Meter(device, model)
    for saving in savings.savings(meter, Policy.uniform(model, wa(8, 8))):
        full = meter.layer_cost(saving.layer, wa(8, 8)).values["latency_s"]
        options = [b for b in range(2, 8) if device.supports(model[saving.layer], wa(b, 8))]
        narrowest = min((meter.layer_cost(saving.layer, wa(b, 8)).values["latency_s"] for b in options), default=full)
        assert saving.weight == pytest.approx(1 - narrowest / full)
        assert saving.both >= max(saving.weight, saving.activation)
        if len(device.native_pairs) == 1:
            assert saving.idle == ("weight", "activation", "both")
