"""Data-sheet devices: the arithmetic kinds, memories, traffic and energy, by hand and by law."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from device_shapes import conv, layers, linear, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.errors import HardwareError
from haqsearch.spec import ModelSpec, Policy
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import profile

HEAD = """
schema = 1
name = "mine"
summary = "a device for tests"
sources = ["this test"]
clock = { frequency_hz = 1e6 }
precision = { weight_bits = [2, 4, 8], activation_bits = [2, 4, 8], unsupported = "round_up" }
"""
LANES = 'compute = { kind = "lanes", outputs = 8, reduction = 16 }'
RATES = 'compute = { kind = "rates", rates = [{ weight_bits = 8, activation_bits = 8, macs_per_cycle = 10 }] }'
AFFINE = """
[compute]
kind = "affine"
per_mac_cycles = 2.0
per_reduction_cycles = 3.0
per_output_cycles = 5.0
per_pixel_cycles = 7.0
per_layer_cycles = 11.0
"""
EIGHT = ("weight_bits = [2, 4, 8], activation_bits = [2, 4, 8]", "weight_bits = [8], activation_bits = [8]")


def device(*text, **changes):
    content = (
        tomllib.loads(HEAD.replace(*EIGHT) + "\n".join(text))
        if RATES in text
        else tomllib.loads(HEAD + "\n".join(text))
    )
    for key, value in changes.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return profile.parse(content, "mine.toml")


def run(machine, layer, choice=None, batch=1):
    """Cycles and the cost of one layer; the clock of these devices is 1 MHz."""
    cost = machine.cost(layer, choice or wa(8, 8), batch)
    return pytest.approx(cost.values["latency_s"] * 1e6), cost


def test_lanes_by_hand():
    layer = conv("c", 24, 20, 3, 5)  # 25 pixels, 20 outputs, 216 products
    assert run(device(LANES), layer)[0] == 25 * 3 * 14
    assert run(device(LANES, compute={"pixels": 4}), layer)[0] == 7 * 3 * 14
    assert run(device(LANES, compute={"reduction_mapping": "taps_in_time"}), layer)[0] == 25 * 3 * 9 * 2
    assert run(device(LANES, compute={"cycles_per_step": 4, "fill_cycles": 5}), layer)[0] == 25 * 3 * (14 * 4 + 5)
    assert run(device(LANES, compute={"least_pixel_steps": 30}), layer)[0] == 30 * 3 * 14
    fused = device(LANES, compute={"fusion": True})
    assert [run(fused, layer, wa(w, a))[0] for w, a in ((8, 8), (4, 8), (4, 4), (2, 2))] == [1050, 525, 300, 75]
    for passes, cycles in (("1", 1050), ("w", 1050 * 4), ("a", 1050 * 2), ("w*a", 1050 * 8)):
        assert run(device(LANES, compute={"passes": passes}), layer, wa(4, 2))[0] == cycles
    assert run(device(LANES), layer, FLOAT_CHOICE)[0] == 16 * 1050  # (32 / 8) squared passes


def test_an_operation_of_its_own():
    apart = device(LANES, compute={"depthwise": {"reduction": 9, "outputs": 1}})
    dw = conv("d", 16, 16, 3, 5, groups=16)
    assert run(device(LANES), dw)[0] == 25 * 2 * 1
    assert run(apart, dw)[0] == 25 * 16 * 1
    assert run(apart, conv("c", 16, 16, 3, 5))[0] == run(device(LANES), conv("c", 16, 16, 3, 5))[0]
    assert run(device(LANES, compute={"linear": {"cycles_per_step": 3}}), linear("f", 16, 8))[0] == 3


def test_rates_by_hand():
    layer = linear("f", 30, 20)
    assert run(device(RATES), layer)[0] == 60
    assert run(device(RATES, compute={"cores": 4, "efficiency": 0.5}), layer)[0] == 30
    padded = {"output_multiple": 16, "reduction_multiple": 32, "pixel_multiple": 2}
    assert run(device(RATES, compute=padded), layer)[0] == 2 * 32 * 32 / 10
    assert run(device(RATES, compute=padded), layer, batch=2)[0] == 2 * 32 * 32 / 10  # the second vector fills the tile
    tera = [{"weight_bits": 8, "activation_bits": 8, "tera_ops_per_s": 1e-5}]
    assert run(device(RATES, compute={"rates": tera}), layer)[0] == 600 / 5  # 5e6 products a second, at 1 MHz
    assert run(device(RATES), layer, FLOAT_CHOICE)[0] == 16 * 60
    row = {"weight_bits": 32, "activation_bits": 32, "macs_per_cycle": 5}
    rows = [{"weight_bits": 8, "activation_bits": 8, "macs_per_cycle": 10}, row]
    assert run(device(RATES, compute={"rates": rows}), layer, FLOAT_CHOICE)[0] == 120


def test_affine_by_hand():
    layer = conv("c", 4, 6, 3, 5)  # 25 pixels, 36 products, 6 outputs
    assert run(device(AFFINE), layer)[0] == 25 * (2 * 36 * 6 + 3 * 36 + 5 * 6 + 7) + 11
    assert run(device(AFFINE), layer, batch=3)[0] == 3 * 25 * (2 * 36 * 6 + 3 * 36 + 5 * 6 + 7) + 11
    dw = conv("d", 6, 6, 3, 5, groups=6)
    assert run(device(AFFINE), dw)[0] == 25 * (2 * 9 * 6 + 3 * 9 * 6 + 5 * 6 + 7) + 11
    scales = [{"weight_bits": 4, "mac_factor": 1.5}, {"activation_bits": 2, "reduction_factor": 2.0}]
    scaled = device(AFFINE, compute={"scales": scales})
    assert run(scaled, layer, wa(4, 2))[0] == 25 * (3 * 36 * 6 + 6 * 36 + 5 * 6 + 7) + 11
    assert run(scaled, layer, wa(8, 8))[0] == run(device(AFFINE), layer)[0]
    assert run(scaled, layer, wa(3, 1))[0] == run(scaled, layer, wa(4, 2))[0]


MEMORY = """
[[memory]]
name = "dram"
holds = ["weights", "inputs", "outputs"]
bandwidth_bits_per_cycle = 8
read_pj_per_bit = 2.0
write_pj_per_bit = 3.0
[[memory]]
name = "sram"
holds = ["weights", "inputs"]
size_bytes = 100
bandwidth_bits_per_cycle = 80
read_pj_per_bit = 0.5
"""
LAYER = linear("f", 30, 20)  # 600 weights, 30 inputs, 20 outputs


def test_memory_by_hand():
    cycles, cost = run(device(RATES, MEMORY), LAYER)
    assert cycles == 600 + 30 + 20  # bytes through DRAM, one a cycle
    assert cost.bound == "weights"
    assert cost.seconds == pytest.approx(
        {"compute": 60e-6, "weights": 600e-6, "activations": 30e-6, "outputs": 20e-6, "overhead": 0.0}
    )
    assert run(device(RATES, MEMORY, traffic={"overlap": "sum"}), LAYER)[0] == 60 + 650 + 63
    assert run(device(RATES, MEMORY, traffic={"output_bits": 32}), LAYER)[0] == 600 + 30 + 80
    slow = device(RATES, MEMORY, compute={"efficiency": 0.01})
    assert run(slow, LAYER)[1].bound == "compute"
    late = device(RATES, MEMORY, overhead={"per_layer_cycles": 1000, "per_layer_s": 1e-3})
    assert run(late, LAYER)[0] == 650 + 2000
    assert run(late, LAYER)[1].bound == "overhead"


def test_bandwidth_in_either_unit():
    bytes_per_s = MEMORY.replace("bandwidth_bits_per_cycle = 80", "").replace("bits_per_cycle = 8", "bytes_per_s = 1e6")
    assert run(device(RATES, bytes_per_s), LAYER)[0] == 650
    assert device(RATES, MEMORY).bandwidth_bytes_per_s == device(RATES, bytes_per_s).bandwidth_bytes_per_s == 1e6
    assert device(RATES).bandwidth_bytes_per_s is None


def test_refetches_by_hand():
    tiled = device(RATES, MEMORY, traffic={"model": "tiled"})
    # The smaller memory gives 50 bytes to each of two tensors: 600 weights are 12 pieces, 30 inputs one; no refetch.
    assert run(tiled, LAYER)[0] == 650
    # 12 pieces of weights, 2 of inputs: 600 bytes of weights again are dearer than 11 * 60 of inputs? No: 600 < 660.
    assert run(tiled, replace(LAYER, in_shape=(60,)))[0] == 1200 + 60 + 20
    double = MEMORY.replace("size_bytes = 100", "size_bytes = 200\ndouble_buffered = true")
    assert run(device(RATES, double, traffic={"model": "tiled"}), replace(LAYER, in_shape=(60,)))[0] == 1280


def test_patches_stream_as_they_are_read():
    layer = conv("c", 4, 2, 3, 10)
    once, stream = (run(device(RATES, MEMORY, traffic={"model": model}), layer)[0] for model in ("once", "stream"))
    assert once == 72 + 4 * 12 * 12 + 200
    assert stream == 72 + 100 * 36 + 200
    dw = conv("d", 4, 4, 3, 10, groups=4)
    assert run(device(RATES, MEMORY, traffic={"model": "stream"}), dw)[0] == 36 + 100 * 36 + 400


def test_weights_stay_while_there_is_room():
    chip = MEMORY.replace("size_bytes = 100", 'size_bytes = 1300\nresident = ["weights"]')
    machine = device(RATES, chip)
    model = ModelSpec("m", tuple(linear(f"f{i}", 30, 20) for i in range(4)))
    assert run(machine, LAYER)[0] == 63  # on its own: it is there already, and moves within the chip
    costs = [
        cost.values["latency_s"] * 1e6 for _, cost in hwmodels.Meter(machine, model).layer_costs(everywhere(model, 8))
    ]
    assert costs == pytest.approx([63, 63, 550, 650])  # of three layers of 600 bytes, 1300 fit
    costs = [
        cost.values["latency_s"] * 1e6 for _, cost in hwmodels.Meter(machine, model).layer_costs(everywhere(model, 4))
    ]
    assert costs == pytest.approx([60, 60, 60, 60])  # at 4 bits all four do
    table = machine.table(model, [wa(8, 8)])
    assert table.values["latency_s"][:, 0] * 1e6 == pytest.approx([63, 63, 550, 650])
    packed = device(RATES, chip + "weight_compression = 0.5")
    costs = [
        cost.values["latency_s"] * 1e6 for _, cost in hwmodels.Meter(packed, model).layer_costs(everywhere(model, 8))
    ]
    assert costs == pytest.approx([60, 60, 60, 60])
    kept = device(RATES, MEMORY.replace("size_bytes = 100", 'size_bytes = 100\nresident = ["inputs"]'))
    assert run(kept, LAYER)[0] == 620
    assert run(kept, replace(LAYER, in_shape=(90,)))[0] == 710


def everywhere(model, bits):
    return Policy.uniform(model, wa(bits, bits))


def test_energy_by_hand():
    assert device(RATES, MEMORY).metrics == ("latency_s",)
    moved = 600 * 8 * 2.5 + 30 * 8 * 2.5 + 20 * 8 * 3.0
    form = {"multiply_pj_per_bit2": 0.5, "multiply_pj_per_bit": 0.25, "accumulate_pj": 1.0}
    for energy, picojoule in (
        (form, 600 * (32 + 2 + 1)),
        ({"core_pj_per_cycle": 7.0}, 60 * 7),
        ({"static_w": 1e-9}, 650e-6 * 1e-9 * 1e12),
        ({"mac": [{"weight_bits": 8, "activation_bits": 8, "pj": 4.0}]}, 2400),
    ):
        cost = device(RATES, MEMORY, energy=energy).cost(LAYER, wa(8, 8), 1)
        assert cost.values["energy_j"] * 1e12 == pytest.approx(moved + picojoule)
    per_mac = device(RATES, MEMORY.replace("size_bytes = 100", 'size_bytes = 100\nreads = "per_mac"'), energy=form)
    assert per_mac.cost(LAYER, wa(8, 8), 1).values["energy_j"] * 1e12 == pytest.approx(
        600 * 8 * 2 + 30 * 8 * 2 + 20 * 8 * 3 + 2 * 600 * 8 * 0.5 + 600 * 35
    )


def test_energy_of_a_pair_without_a_row_is_that_of_the_next_wider_by_its_bits():
    rows = [{"weight_bits": b, "activation_bits": b, "pj": float(b)} for b in (4, 8)]
    energies = device(LANES, energy={"mac": rows}).profile.energy
    assert [energies.mac_pj(*pair) for pair in ((8, 8), (4, 4), (4, 8), (2, 2), (32, 32))] == [8, 4, 4, 1, 128]


def test_stored_bits_and_executed_bits():
    layer = conv("c", 16, 16, 3, 8)
    exact, native = device(AFFINE), device(AFFINE, precision={"storage": "native"})
    sizes = [hwmodels.Meter(d, ModelSpec("m", (layer,))).costs(Policy({"c": wa(3, 5)})) for d in (exact, native)]
    assert [size["size_bytes"] for size in sizes] == [2304 * 3 // 8 + 128, 2304 * 4 // 8 + 128]
    assert [size["peak_activation_bytes"] for size in sizes] == [1024 * 5 // 8 + 1024, 1024 + 1024]
    assert [size["bops"] for size in sizes] == [layer.macs * 15] * 2
    assert native.stored(layer, wa(3, 5)) == wa(4, 8)
    assert exact.stored(layer, wa(3, 5)) == wa(3, 5)
    assert native.stored(layer, FLOAT_CHOICE) == FLOAT_CHOICE


def test_pairs_and_channel_multiples():
    pairs = device(AFFINE, precision={"pairs": [[2, 2], [8, 4], [8, 8]]})
    asked = [wa(2, 2), wa(1, 1), wa(2, 3), wa(4, 4), wa(5, 5), wa(8, 8)]
    assert [pairs.native(LAYER, choice) for choice in asked] == [(2, 2), (2, 2), (8, 4), (8, 4), (8, 8), (8, 8)]
    multiples = {"channel_multiple": {"4": 2, "2": 4}, "storage": "native"}
    packed, refusing = (
        device(AFFINE, precision=multiples),
        device(AFFINE, precision={**multiples, "unsupported": "error"}),
    )
    for channels, native in ((16, (2, 2)), (6, (4, 4)), (5, (8, 8))):
        layer = linear("f", channels, 8)
        assert packed.native(layer, wa(2, 2)) == native
        assert packed.stored(layer, wa(2, 2)) == wa(*native)
        assert refusing.supports(layer, wa(2, 2)) == (channels == 16)
    with pytest.raises(HardwareError, match="5 input channels, where 4 bits in 2s, 2 bits in 4s"):
        refusing.cost(linear("f", 5, 8), wa(2, 2), 1)


@given(
    layer=layers(), w=st.sampled_from([2, 4]), a=st.sampled_from([2, 4]), name=st.sampled_from(["generic-45nm", "mpic"])
)
@settings(max_examples=60, deadline=None)
def test_narrower_operands_never_move_or_cost_more(layer, w, a, name):
    machine = hwmodels.load(name)
    narrow, wide = (machine.cost(layer, choice, 1).values for choice in (wa(w, a), wa(8, 8)))
    assert narrow["latency_s"] <= wide["latency_s"]
    assert narrow["energy_j"] <= wide["energy_j"]


@given(layer=layers(), name=st.sampled_from(["gap8", "x86-avx2", "nvidia-a100", "ethos-u55-256"]))
@settings(max_examples=60, deadline=None)
def test_latency_is_made_of_its_parts(layer, name):
    machine = hwmodels.load(name)
    cost = machine.cost(layer, wa(8, 8), 1)
    latency, slack = cost.values["latency_s"], 1 + 1e-9
    assert max(cost.seconds.values()) <= latency * slack
    levels = len(machine.profile.memory)
    assert latency <= (sum(cost.seconds.values()) + levels * sum(cost.seconds.values())) * slack
    assert cost.bound in cost.seconds
    assert layer.macs / latency <= machine.peak_macs_per_s(8, 8) * slack


def test_ethos_is_velas_closed_form():
    # 3 x 3 depthwise: 24 of 256 products a cycle [ethosu/vela/npu_performance.py]; full convolutions reach all of them.
    machine = hwmodels.load("ethos-u55-256")
    for layer, macs_per_cycle in ((conv("c", 64, 64, 3, 32), 256), (conv("d", 64, 64, 3, 32, groups=64), 24)):
        compute = machine.cost(layer, wa(8, 8), 1).seconds["compute"]
        assert layer.macs / (compute * 500e6) == pytest.approx(macs_per_cycle)


def test_narrow_weights_are_slower_where_they_are_unpacked():
    layer = conv("c", 64, 64, 3, 16)
    for name in ("cortex-m7", "gap8"):
        machine = hwmodels.load(name)
        eight, four = (machine.cost(layer, wa(w, 8), 1).seconds["compute"] for w in (8, 4))
        assert four > eight, name
    faster = [hwmodels.load("xpulpnn").cost(layer, wa(b, b), 1).seconds["compute"] for b in (8, 4, 2)]
    assert faster[0] > faster[1] > faster[2]
