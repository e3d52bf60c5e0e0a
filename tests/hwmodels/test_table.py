from __future__ import annotations

import csv
import re
import tomllib
from dataclasses import replace
from math import exp, log

import pytest
from device_shapes import conv, linear, wa
from hypothesis import given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.errors import HardwareError
from haqsearch.spec import ModelSpec, Policy, SearchSpace
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import networks, overlay, profile, table
from hwmodels.overlay import Measured
from hwmodels.table import MeasuredTable, Row, Shape

T4 = hwmodels.load("nvidia-t4")
M7 = hwmodels.load("cortex-m7")
LAYERS = [conv("a", 16, 32, 3, 10), conv("b", 64, 16, 1, 20), conv("d", 24, 24, 3, 8, groups=24), linear("fc", 64, 10)]
HEADER = ",".join(table.COLUMNS)
GOOD = "conv2d,16,32,3,3,1,1,10,10,1,1,8,8,0.01"


def seconds(device, layer, choice, batch=1):
    return device.cost(layer, choice, batch).values["latency_s"]


def times(factor, layers=LAYERS, widths=((4, 4), (8, 8))):
    """Rows of layers that really take ``factor`` times what the model of cortex-m7 says."""
    return [
        Row(Shape.of(layer), 1, wa(*pair), factor * seconds(M7, layer, wa(*pair)), line=i + 2)
        for i, (layer, pair) in enumerate((layer, pair) for layer in layers for pair in widths)
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_shape_is_a_layer_and_back(layer):
    again = Shape.of(layer).layer(layer.name)
    assert again == layer
    assert Shape.of(again) == Shape.of(layer)


@pytest.mark.parametrize("network", [networks.resnet18(), networks.resnet50()], ids=lambda model: model.name)
def test_what_was_measured_wins(network):
    device, names = T4.bind(network), 0
    for row in T4.table_rows.rows:
        if row.network == network.name:
            cost = device.cost(network[row.layer], row.choice, 8)
            assert cost.values["latency_s"] == row.latency_s
            assert cost.source == f"measured nvidia-t4.csv:{row.line}"
            names += 1
    assert names == 2 * (len(network) - 2)  # all but the first and the last layer


def test_another_network_takes_the_mean_of_its_shape():
    shape = Shape.of(networks.resnet18()["layer1.0.conv1"])
    same = [row.latency_s for row in T4.table_rows.rows if row.shape == shape and row.choice == wa(8, 8)]
    assert len(same) == 7  # four in ResNet-18, three in ResNet-50
    cost = T4.cost(shape.layer("mine"), wa(8, 8), 8)
    assert cost.source.startswith("measured")
    assert cost.values["latency_s"] == pytest.approx(exp(sum(map(log, same)) / 7))


@given(
    factor=st.floats(0.01, 100),
    c=st.integers(8, 80),
    n=st.integers(8, 40),
    out=st.integers(5, 30),
    w=st.sampled_from([4, 8]),
)
@settings(max_examples=40, deadline=None)
def test_a_model_wrong_by_one_factor_is_right_everywhere(factor, c, n, out, w):
    device = Measured(M7, MeasuredTable(times(factor)))
    layer = conv("new", c, n, 3, out)
    cost = device.cost(layer, wa(w, w), 1)
    assert cost.values["latency_s"] == pytest.approx(factor * seconds(M7, layer, wa(w, w)), rel=1e-6)
    assert cost.source.split()[0] in ("interpolated", "extrapolated", "measured")


@given(scale=st.floats(0.5, 2), c=st.integers(8, 200), out=st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_ratios_stay_within_those_measured(scale, c, out):
    rows = [replace(row, latency_s=row.latency_s * (scale if i % 2 else 1)) for i, row in enumerate(times(1.0))]
    device, layer = Measured(M7, MeasuredTable(rows)), conv("new", c, 8, 3, out)
    ratio = seconds(device, layer, wa(8, 8)) / seconds(M7, layer, wa(8, 8))
    assert min(1, scale) * (1 - 1e-9) <= ratio <= max(1, scale) * (1 + 1e-9)


def test_latencies_of_other_shapes_are_never_taken_over():
    # One measured layer: a layer 100 times as large is 100 times as slow, whatever the row says in seconds.
    device = Measured(M7, MeasuredTable(times(3.0, [conv("a", 16, 32, 1, 10)], [(8, 8)])))
    large = conv("large", 16, 32, 1, 100)
    cost = device.cost(large, wa(8, 8), 1)
    assert cost.values["latency_s"] == pytest.approx(3.0 * seconds(M7, large, wa(8, 8)))
    assert cost.source.startswith("extrapolated from 1 rows")


def test_extrapolation_is_flagged_or_refused():
    rows = MeasuredTable(times(2.0), "mine.csv")
    near, far = conv("near", 16, 32, 3, 12), conv("far", 2048, 2048, 3, 100)
    for device in (Measured(M7, rows), Measured(M7, rows, "refuse")):
        assert device.cost(near, wa(8, 8), 1).source.startswith("interpolated from 4 rows of mine.csv: 2 of the model")
        assert device.supports(far, FLOAT_CHOICE) == (device.extrapolation == "flag")
    assert Measured(M7, rows).cost(far, wa(8, 8), 1).source.startswith("extrapolated")
    refusing = Measured(M7, rows, "refuse")
    assert not refusing.supports(far, wa(8, 8))
    with pytest.raises(
        HardwareError, match=r"layer 'far' at w8a8 is unlike every row of mine\.csv: measure it, or allow"
    ):
        refusing.cost(far, wa(8, 8), 1)
    odd = replace(linear("gru", 64, 10), op="gru", quantizable=False)
    only_convolutions = Measured(M7, MeasuredTable(times(2.0, LAYERS[:2]), "mine.csv"))
    source = only_convolutions.cost(odd, FLOAT_CHOICE, 1).source
    assert source == "extrapolated: mine.csv has no row of this operation"
    assert seconds(only_convolutions, odd, FLOAT_CHOICE) == seconds(M7, odd, FLOAT_CHOICE)


def test_coverage():
    model = ModelSpec("net", (LAYERS[0], LAYERS[1], conv("c", 16, 64, 3, 12)))
    device = Measured(M7, MeasuredTable(times(2.0, LAYERS[:1], [(w, a) for w in (4, 8) for a in (4, 8)])))
    found = overlay.coverage(device, model, SearchSpace.build(model, (4, 8), (4, 8)))
    assert found.measured_layers == ("a",)
    assert found.counts["measured"] == 4
    assert sum(found.counts.values()) == 12
    assert found.share == pytest.approx(1 / 3)


def test_leave_one_out_does_not_see_the_row():
    rows = times(2.0)
    device = Measured(M7, MeasuredTable(rows))
    assert all(abs(left.error) < 1e-6 for left in overlay.leave_one_out(device))
    rows[0] = replace(rows[0], latency_s=1e6 * rows[0].latency_s)
    left = overlay.leave_one_out(Measured(M7, MeasuredTable(rows)))[0]
    assert left.predicted_s == pytest.approx(2.0 * seconds(M7, LAYERS[0], rows[0].choice))


def test_the_t4s_leave_one_out_error():
    for whole_shape, median, mean in ((False, 0.09, 0.11), (True, 0.11, 0.15)):
        errors = sorted(abs(left.error) for left in overlay.leave_one_out(T4, whole_shape))
        assert len(errors) == 142
        assert errors[71] < median
        assert sum(errors) / 142 < mean


def test_energy_is_taken_where_it_was_measured():
    row = replace(times(1.0)[1], energy_j=0.5)
    assert Measured(M7, MeasuredTable([row])).cost(LAYERS[0], wa(8, 8), 1).values["energy_j"] == 0.5


def test_digest_follows_every_row():
    rows = times(1.0)
    other = [replace(rows[0], latency_s=rows[0].latency_s * 1.001), *rows[1:]]
    assert Measured(M7, MeasuredTable(rows)).digest != Measured(M7, MeasuredTable(other)).digest


def test_a_table_is_written_and_read(tmp_path):
    rows = [*times(1.3), replace(times(1.0)[0], choice=FLOAT_CHOICE, network="net", layer="a", energy_j=0.25)]
    (tmp_path / "mine.csv").write_text(table.to_csv(rows))
    again = table.read(tmp_path / "mine.csv")
    assert [replace(row, line=0) for row in again.rows] == [replace(row, line=0) for row in rows]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER.replace("latency_s", "latency")], "1: column latency_s is missing"),
        ([HEADER + ",latency_ms"], "1: unknown column 'latency_ms'"),
        ([HEADER], "1: a table without rows"),
        ([HEADER, GOOD, GOOD], "3: the same layer, batch and widths as line 2"),
        ([HEADER, GOOD.replace("0.01", "nan")], "2: latency_s = 'nan': should be a positive number"),
        ([HEADER, GOOD.replace("0.01", "-1")], "2: latency_s = '-1': should be a positive number"),
        ([HEADER, GOOD.replace("0.01", "inf")], "2: latency_s = 'inf': should be"),
        ([HEADER, GOOD.replace("0.01", "10 ms")], "2: latency_s = '10 ms': should be"),
        ([HEADER, GOOD.replace("16,32", "16,-32")], "2: out_channels = '-32': should be a whole number"),
        ([HEADER, GOOD.replace("conv2d", "conv")], "2: op = 'conv': tables have conv2d"),
        ([HEADER, GOOD.replace("1,8,8", "1,8,99")], "2: weight_bits, activation_bits: 1 to 16, or 32 and 32"),
        ([HEADER, GOOD.replace("10,10,1,1", "10,10,3,1")], "2: groups = 3: does not divide"),
        ([HEADER, GOOD + ",7"], "2: a row with more or fewer cells"),
        ([HEADER, "conv2d,16"], "2: a row with more or fewer cells"),
        ([HEADER, '"conv2d'], "not a CSV file"),
    ],
)  # fmt: skip
def test_a_wrong_table_says_what_to_mend(tmp_path, lines, message):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(HardwareError) as caught:
        table.read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def load_with(tmp_path, rows, **section):
    data = tomllib.loads((profile.PROFILES / "cortex-m7.toml").read_text())
    (tmp_path / "mine.csv").write_text("\n".join([HEADER + ",network,layer", *rows]) + "\n")
    return profile.parse({**data, "table": {"file": "mine.csv", **section}}, str(tmp_path / "mine.toml"))


def test_a_profile_names_its_table(tmp_path):
    device = load_with(tmp_path, [GOOD + ",,"])
    assert seconds(device, LAYERS[0], wa(8, 8)) == 0.01
    with pytest.raises(HardwareError, match=r"mine\.toml: table\.file = 'none\.csv': no such file beside the profile"):
        load_with(tmp_path, [GOOD + ",,"], file="none.csv")


def test_a_row_of_a_width_that_the_device_lacks(tmp_path):
    with pytest.raises(HardwareError, match=r"mine\.csv:2: weight_bits, activation_bits: w3a8 is not among the widths"):
        load_with(tmp_path, [GOOD.replace("1,8,8", "1,3,8") + ",,"])


def test_rows_of_one_layer_have_one_shape(tmp_path):
    other = GOOD.replace("16,32", "16,64").replace("1,8,8", "1,4,4")
    with pytest.raises(HardwareError, match=r"mine\.csv:3: layer 'b' of net has another shape here .* than in line 2"):
        load_with(tmp_path, [GOOD + ",net,b", other + ",net,b"])


def test_a_row_for_another_shape_than_the_layer_it_names(tmp_path):
    model = ModelSpec("net", tuple(LAYERS[:2]))
    message = r"mine\.csv:2: layer 'b' of net is conv2d 64 -> 16.* this row is for conv2d 16"
    with pytest.raises(HardwareError, match=message):
        hwmodels.Meter(load_with(tmp_path, [GOOD + ",net,b"], extrapolation="refuse"), model)
    meter = hwmodels.Meter(load_with(tmp_path, [GOOD + ",net,b"]), model)
    same_shape, named = (cost for _, cost in meter.layer_costs(Policy.uniform(model, wa(8, 8))))
    assert same_shape.values["latency_s"] == 0.01  # the row is true of its shape
    assert re.search(message, named.source)
    assert named.source.startswith(("interpolated", "extrapolated"))
    other = hwmodels.Meter(meter.device, ModelSpec("other", tuple(LAYERS[:2])))
    assert "row is for" not in other.layer_cost("b", wa(8, 8)).source


def test_the_table_that_ships_is_the_published_one(shared_file):
    with shared_file("validation/hawq_t4_latency.csv").open() as file:
        published = [float(row[key]) / 1e3 for row in csv.DictReader(file) for key in ("int4_ms", "int8_ms")]
    assert [row.latency_s for row in T4.table_rows.rows] == pytest.approx(published, rel=1e-12)
