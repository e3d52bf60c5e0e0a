from __future__ import annotations

from dataclasses import replace

import pytest
from device_shapes import conv, layers, linear, models, wa
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.spec import ActivationSpec, Choice, ModelSpec, Policy
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import Meter, load, memory


def test_size_by_hand():
    layer = conv("c", 3, 5, 3, 8)  # 135 weights, 5 output channels
    assert memory.size_bytes(layer, wa(4, 8)) == 68 + 5 * 4 + 5 * 4
    assert memory.size_bytes(replace(layer, has_bias=False), wa(3, 8)) == 51 + 5 * 4
    assert memory.size_bytes(layer, FLOAT_CHOICE) == 4 * 135 + 4 * 5
    assert memory.size_bytes(replace(layer, weight_shape=()), FLOAT_CHOICE) == 0


def test_a_codebook_by_hand():
    layer = conv("c", 3, 5, 3, 8)  # 135 weights, 5 output channels
    stored = Choice.parse("int8:tensor/uint8")  # what the device computes with

    def size(text):
        choice = Choice.parse(f"{text}/uint8")
        assert choice.computed == stored or not text.startswith("kmeans")
        return memory.layer_values(layer, choice, choice.computed)["size_bytes"]

    assert size("kmeans3") == 51 + 2**3 + 4 + 5 * 4  # indices, book, one scale, biases
    assert size("kmeans8") == 135 + 2**8 + 4 + 5 * 4
    assert size("ternary") == 34 + 5 * 4 + 5 * 4 == memory.size_bytes(layer, wa(2, 8))
    assert size("binary") == 17 + 5 * 4 + 5 * 4
    assert memory.bops(layer, Choice.parse("kmeans3/uint4")) == layer.macs * 8 * 4  # computed with 8 bits


def test_blocks_by_hand():
    """5 channels of 27 weights: codes, then what blocks share, a shorter one at each channel's end; a scale and a bias each."""
    layer, channels = conv("c", 3, 5, 3, 8), 5 * 4 + 5 * 4

    def size(text):
        return memory.layer_values(layer, Choice.parse(f"{text}/uint8"), Choice.parse("w8a8"))["size_bytes"]

    assert size("vsq4") == 68 + 5 + channels  # 2 vectors each, 4 bits
    assert size("int4:group=16") == 68 + 5 * 2 * 4 + channels
    assert size("int3:group=9") == 51 + 5 * 3 * 4 + channels
    assert size("mx4") == 51 + 9 + 10 + channels  # 3 bits; 14 pairs each, 70 bits; 2 blocks each, 8 bits
    assert size("mxfp4") == 68 + 5 + channels
    assert memory.bops(layer, Choice.parse("vsq4/uint4")) == layer.macs * 8 * 4


@pytest.mark.parametrize("name", ["bitfusion", "bismo-edge", "cortex-m7"])
def test_a_device_charges_a_codebook_for_the_codes_it_computes_with(name):
    model = ModelSpec("m", (conv("a", 8, 16, 3, 8), linear("b", 16, 10)))
    meter = Meter(load(name), model)
    kmeans, int8, table = (
        Policy.uniform(model, Choice.parse(text)) for text in ("kmeans3/uint8", "int8:tensor/uint8", "kmeans3/uint8")
    )
    few, many = meter.costs(kmeans), meter.costs(int8)
    assert few["size_bytes"] < many["size_bytes"]
    assert {k: v for k, v in few.items() if k != "size_bytes"} == {k: v for k, v in many.items() if k != "size_bytes"}
    found = meter.device.table(model, [Choice.parse("kmeans3/uint8")])
    for metric, values in found.values.items():
        assert values.sum() == pytest.approx(meter.costs(table)[metric])


def test_bops_by_hand():
    layer = linear("fc", 10, 7)
    assert memory.bops(layer, wa(4, 3)) == 70 * 12
    assert memory.bops(layer, FLOAT_CHOICE) == 70 * 1024


@given(layer=layers(), w=st.integers(1, 15), a=st.integers(1, 15))
def test_more_bits_never_cost_fewer_bytes_or_bops(layer, w, a):
    for more in (wa(w + 1, a), wa(w, a + 1)):
        assert memory.size_bytes(layer, more) >= memory.size_bytes(layer, wa(w, a))
        assert memory.bops(layer, more) > memory.bops(layer, wa(w, a))


def test_peak_by_hand():
    # step 0: input and skip; step 1: skip, input of b and b's result; step 2: the result alone
    model = ModelSpec(
        "m",
        (linear("a", 100, 50), linear("b", 50, 10)),
        (
            ActivationSpec("input", 100, 0, 0, "a"),
            ActivationSpec("skip", 33, 0, 1, bits=8),
            ActivationSpec("hidden", 51, 1, 1, "b"),
            ActivationSpec("result", 10, 1, 2, bits=32),
        ),
    )
    peak = memory.ActivationMemory.of(model).peak
    assert peak(Policy({"a": wa(8, 8), "b": wa(8, 4)})) == 100 + 33
    assert peak(Policy({"a": wa(8, 2), "b": wa(8, 3)})) == 33 + 20 + 40  # 51 * 3 bits round up to 20 bytes


def test_without_buffers_the_peak_is_the_largest_input_and_output():
    model = ModelSpec("m", (linear("a", 100, 50), linear("b", 50, 10), linear("c", 10, 40, quantizable=False)))
    peak = memory.ActivationMemory.of(model).peak
    assert peak(Policy({"a": wa(8, 4), "b": wa(8, 8), "c": FLOAT_CHOICE})) == max(50 + 50, 50 + 10, 40 + 160)
    assert memory.ActivationMemory.of(ModelSpec("empty", ())).peak(Policy({})) == 0


@given(model=models(), bits=st.data())
def test_peak_is_the_largest_step(model, bits):
    widths = {layer.name: bits.draw(st.integers(1, 8)) for layer in model.quantizable}
    choices = {n: wa(8, widths[n]) if n in widths else FLOAT_CHOICE for n in (layer.name for layer in model)}
    policy = Policy(choices)

    def stored(b: ActivationSpec) -> int:
        width = policy[b.format_of].activation.width if b.format_of else b.bits
        return -(-b.elements * width // 8)

    steps = range(max(b.last for b in model.activations) + 1)
    by_hand = max(sum(stored(b) for b in model.activations if b.first <= step <= b.last) for step in steps)
    assert memory.ActivationMemory.of(model).peak(policy) == by_hand


@given(model=models(), bits=st.integers(1, 15))
def test_wider_activations_never_lower_the_peak(model, bits):
    peak = memory.ActivationMemory.of(model).peak
    assert peak(Policy.uniform(model, wa(8, bits))) <= peak(Policy.uniform(model, wa(8, bits + 1)))


def test_a_peak_has_the_buffers_that_make_it():
    model = ModelSpec("m", (linear("a", 100, 50), linear("b", 50, 10)))
    at_peak = memory.ActivationMemory.of(model).at_peak(Policy.uniform(model, wa(8, 8)), lambda b: not b.format_of)
    assert [(b.name, size) for b, size in at_peak] == [("a.output", 50)]
    assert memory.packed_bytes(3, 4.25) == pytest.approx(2)
