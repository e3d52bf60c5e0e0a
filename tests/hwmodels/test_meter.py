from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
from device_shapes import linear, mobilenet_v2, models, wa
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.errors import BudgetError, HardwareError, PolicyError
from haqsearch.spec import METRICS, Budget, LayerSpec, ModelSpec, Policy, SearchSpace
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels.meter import quantity

DEVICES = {name: hwmodels.load(name) for name in hwmodels.list_profiles()}
devices = st.sampled_from(list(DEVICES.values()))


def space_of(model, device, bits=(2, 4, 8), fixed=None):
    return SearchSpace.build(model, bits, bits, fixed, device.supports)


def every_policy(space):
    return [space.policy(indices) for indices in product(*(range(len(v.candidates)) for v in space.variables))]


def limits_of(meter, *texts):
    return [Budget.parse(text).resolve(meter.int8()) for text in texts]


@given(model=models(), device=devices, pinned=st.booleans())
@settings(max_examples=40, deadline=None)
def test_least_equals_brute_force(model, device, pinned):
    space = space_of(model, device, (2, 8) if len(model) > 3 else (2, 5, 8), {"l0": wa(8, 8)} if pinned else None)
    meter = hwmodels.Meter(device, model)
    costs = [meter.costs(policy) for policy in every_policy(space)]
    least = meter.least(space)
    assert set(least) == set(meter.metrics)
    for metric, found in least.items():
        assert found.value == pytest.approx(min(c[metric] for c in costs), rel=1e-12), metric
        assert space.contains(found.policy)
        assert meter.costs(found.policy)[metric] == found.value
        assert [h.value for h in found.holders] == sorted((h.value for h in found.holders), reverse=True)
        assert sum(h.share for h in found.holders) <= 1 + 1e-9
        if metric in device.metrics:
            fixed = {layer.name for layer in model if not layer.quantizable} | ({"l0"} if pinned else set())
            assert fixed <= {h.name for h in found.holders}


@given(model=models(), device=devices, factors=st.tuples(*[st.floats(0.2, 1.2)] * 3))
@settings(max_examples=60, deadline=None)
def test_what_is_refused_is_unreachable(model, device, factors):
    space, meter = space_of(model, device, (2, 8)), hwmodels.Meter(device, model)
    names = [name for name in ("latency_s", "size_bytes", "energy_j") if name in meter.metrics]
    limits = limits_of(meter, *(f"{name} <= {factor} * int8" for name, factor in zip(names, factors, strict=False)))
    reachable = any(all(x.met(costs) for x in limits) for costs in map(meter.costs, every_policy(space)))
    try:
        meter.check_reachable(space, limits)
    except BudgetError as error:
        assert not reachable, error
        assert "\n" not in str(error)


def test_an_unreachable_budget_names_who_holds_it_up():
    model, device = mobilenet_v2(), DEVICES["bismo-edge"]
    space = space_of(model, device, fixed={"l0": wa(8, 8), "l52": wa(8, 8)})
    meter = hwmodels.Meter(device, model)
    with pytest.raises(
        BudgetError, match=r"least reachable size_bytes on bismo-edge is .* MB, held up by l52 1.288 MB"
    ):
        meter.check_reachable(space, limits_of(meter, "size_bytes <= 300 kB"))
    with pytest.raises(BudgetError, match=r"nothing is pinned"):
        meter.check_reachable(space_of(model, device), limits_of(meter, "latency_s <= 0.01 * int8"))
    meter.check_reachable(space, limits_of(meter, "size_bytes <= 2.2 MB", "latency_s <= 0.5 * int8"))


def test_budgets_that_exclude_each_other():
    class Tradeoff(hwmodels.HardwareModel):
        name, summary, digest = "tradeoff", "narrow weights are slow to unpack", "1"
        metrics = ("latency_s",)

        def supports(self, layer, choice):
            return True

        def cost(self, layer, choice, batch):
            return hwmodels.LayerCost({"latency_s": 10.0 - choice.weight.width}, "compute", "made up")

    model = ModelSpec("m", tuple(linear(f"l{i}", 100, 100) for i in range(4)))
    device = Tradeoff()
    space, meter = space_of(model, device), hwmodels.Meter(device, model)
    meter.check_reachable(space, limits_of(meter, "latency_s <= 20 s", "size_bytes <= 30 kB"))
    with pytest.raises(BudgetError, match="not together"):
        meter.check_reachable(space, limits_of(meter, "latency_s <= 10 s", "size_bytes <= 20 kB"))


def test_a_metric_the_device_lacks():
    class Silent(hwmodels.HardwareModel):
        name, summary, digest, metrics = "silent", "knows nothing", "0", ()

        def supports(self, layer, choice):
            return True

        def cost(self, layer, choice, batch):
            return hwmodels.LayerCost({}, "compute", "nowhere")

    model = mobilenet_v2()
    meter = hwmodels.Meter(Silent(), model)
    assert meter.metrics == ("size_bytes", "bops", "peak_activation_bytes")
    limit = Budget.parse("latency_s <= 1 s").resolve({"latency_s": 1.0})
    with pytest.raises(BudgetError, match="silent has no latency_s; it knows size_bytes"):
        meter.check_reachable(space_of(model, meter.device), [limit])


@given(model=models(), device=devices, data=st.data())
@settings(max_examples=40, deadline=None)
def test_table_equals_the_layers_one_by_one(model, device, data):
    space, meter = space_of(model, device), hwmodels.Meter(device, model)
    table = device.table(model, space)
    sizes = [len(v.candidates) for v in space.variables]
    policies = [space.policy([data.draw(st.integers(0, n - 1)) for n in sizes]) for _ in range(5)]
    totals = table.totals(table.indices(policies))
    for metric in (*device.additive, "size_bytes", "bops"):
        assert totals[metric] == pytest.approx([meter.costs(policy)[metric] for policy in policies], rel=1e-12)


def test_table_marks_what_cannot_be_had():
    model = ModelSpec("m", (linear("a", 64, 64), linear("b", 64, 8, quantizable=False, reason="why not")))
    table = DEVICES["bismo-edge"].table(model, [wa(4, 4), wa(9, 9)])
    assert table.choices == (wa(4, 4), wa(9, 9), FLOAT_CHOICE)
    assert np.isfinite(table.values["latency_s"]).tolist() == [[True, False, False], [False, False, True]]
    assert [(row["layer"], row["choice"]) for row in table.rows()] == [("a", "w4a4"), ("b", "float32")]
    assert np.isinf(table.totals([1, 2])["latency_s"]).all()
    with pytest.raises(PolicyError, match="w2a2"):
        table.indices([Policy.uniform(model, wa(2, 2))])
    with pytest.raises(IndexError):
        table.totals([[0, 3]])
    with pytest.raises(HardwareError, match="'a'"):
        DEVICES["bismo-edge"].table(model, [wa(9, 9)])


def test_table_rows_are_csv(tmp_path):
    table = DEVICES["bitfusion"].table(mobilenet_v2(), [wa(8, 8), wa(4, 4)])
    rows = list(table.rows())
    with (tmp_path / "costs.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with (tmp_path / "costs.csv").open() as file:
        back = list(csv.DictReader(file))
    assert len(back) == 2 * 53
    assert float(back[0]["latency_s"]) == table.values["latency_s"][0, 0]
    assert set(back[0]) == {"layer", "choice", "latency_s", "energy_j", "size_bytes", "bops"}


def test_costs_are_the_sum_of_layer_costs():
    model, device = mobilenet_v2(), DEVICES["bismo-cloud"]
    meter = hwmodels.Meter(device, model, batch=4)
    policy = Policy.uniform(model, wa(3, 5))
    costs, layers = meter.costs(policy), meter.layer_costs(policy)
    assert tuple(costs) == meter.metrics
    assert [layer.name for layer, _ in layers] == [layer.name for layer in model]
    for metric in ("latency_s", "energy_j", "size_bytes", "bops"):
        assert costs[metric] == pytest.approx(sum(cost.values[metric] for _, cost in layers))
    assert meter.costs(policy) == hwmodels.Meter(device, model, batch=4).costs(policy)
    assert costs["latency_s"] < hwmodels.Meter(device, model).costs(policy)["latency_s"]  # 16 samples by default


def test_int8_leaves_float_layers_in_float():
    model = ModelSpec("m", (linear("a", 100, 10), linear("b", 10, 10, quantizable=False)))
    assert hwmodels.Meter(DEVICES["bitfusion"], model).int8()["size_bytes"] == (1000 + 80) + (400 + 40)


def test_a_policy_for_another_model_or_device_is_refused():
    model = ModelSpec("m", (linear("a", 100, 10), linear("b", 10, 10)))
    meter = hwmodels.Meter(DEVICES["bismo-edge"], model)
    with pytest.raises(PolicyError, match="'b'"):
        meter.costs(Policy({"a": wa(8, 8)}))
    with pytest.raises(HardwareError, match="'a' cannot run at w9a8"):
        meter.costs(Policy.uniform(model, wa(9, 8)))
    with pytest.raises(HardwareError, match="batch 0"):
        hwmodels.Meter(DEVICES["bismo-edge"], model, batch=0).int8()


def test_a_metric_that_is_no_sum_is_totalled_by_the_device():
    class Pipeline(hwmodels.HardwareModel):
        """Layers side by side: the slowest sets the pace."""

        name, summary, digest, metrics, additive = "pipeline", "a layer a stage", "2", ("latency_s",), ()

        def supports(self, layer, choice):
            return True

        def cost(self, layer, choice, batch):
            return hwmodels.LayerCost({"latency_s": batch * layer.macs * 1e-9}, "compute", "made up")

        def total(self, metric, values):
            return max(values)

    model = ModelSpec("m", (linear("a", 100, 10), linear("b", 10, 10)))
    meter = hwmodels.Meter(Pipeline(), model)
    assert meter.int8()["latency_s"] == pytest.approx(1e-6)
    assert "latency_s" not in meter.least(space_of(model, meter.device))


@given(st.sampled_from(list(METRICS)), st.floats(1e-9, 1e15))
def test_quantity_reads_back(metric, value):
    number, _, unit = quantity(metric, value).partition(" ")
    assume(unit in METRICS[metric].units)
    assert float(number) * METRICS[metric].units[unit] == pytest.approx(value, rel=1e-3)


def test_layers_of_any_operator_have_a_price():
    odd = [
        LayerSpec("t", "conv_transpose2d", (8, 8, 8), (8, 4, 2, 2), (4, 16, 16), 8192),
        LayerSpec("gru", "gru", (10, 16), (48, 16), (10, 16), 7680, quantizable=False),
        LayerSpec("attention", "attention", (10, 16), (), (10, 16), 3200, quantizable=False),
        LayerSpec("shapeless", "conv2d", (1,), (8, 4, 3, 3), (1,), 288, quantizable=False),
    ]
    for device, layer in product(DEVICES.values(), odd):
        cost = device.cost(layer, FLOAT_CHOICE, 1).values
        assert all(value > 0 for value in cost.values()), layer.op
