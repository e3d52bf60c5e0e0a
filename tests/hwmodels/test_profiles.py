from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from device_shapes import conv, linear, wa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.errors import HardwareError
from haqsearch.spec.policy import FLOAT_CHOICE
from hwmodels import profile

README = Path(hwmodels.__file__).with_name("README.md")
TEXTS = {path.stem: path.read_text() for path in profile.PROFILES.glob("*.toml")}


DEVICES = (
    "bismo-cloud", "bismo-edge", "bitfusion", "bitfusion-16x32", "cortex-m7", "edge-tpu", "ethos-u55-256", "gap8",
    "generic-45nm", "mpic", "nvidia-a100", "nvidia-h200", "nvidia-t4", "x86-avx2", "x86-avx512-vnni", "xpulpnn",
)  # fmt: skip


def test_every_profile_loads_under_its_name():
    assert set(hwmodels.list_profiles()) >= set(DEVICES)
    for name in hwmodels.list_profiles():
        device = hwmodels.load(name)
        assert device.name == name
        assert not device.draft
        assert device.digest == hwmodels.load(profile.PROFILES / f"{name}.toml").digest
    assert len({hwmodels.load(name).digest for name in hwmodels.list_profiles()}) == len(hwmodels.list_profiles())


def test_digest_follows_every_number():
    data = tomllib.loads(TEXTS["bitfusion"])
    data["memory"]["dram"]["energy_pj_per_bit"] = 14.0
    assert profile.parse(data, "x").digest != hwmodels.load("bitfusion").digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frequency_hz = 200e6", "frequency = 200e6", "clock.frequency: unknown key; did you mean 'frequency_hz'?"),
        ("frequency_hz = 200e6", "", "clock.frequency_hz: missing"),
        ("frequency_hz = 200e6", "frequency_hz = -200e6", "frequency_hz = -200000000.0: should be greater than 0"),
        ("frequency_hz = 200e6", "frequency_hz = '200 MHz'", "frequency_hz = '200 MHz': should be a valid number"),
        ("frequency_hz = 200e6", "frequency_hz = nan", "clock.frequency_hz = nan: should be a finite number"),
        ("frequency_hz = 200e6", "frequency_hz = 5e-324", "clock.frequency_hz = 5e-324: should be at least 1e-9"),
        ("rows = 8", "rows = 8.5", "compute.rows = 8.5: should be a valid integer"),
        ("rows = 8", "rows = true", "compute.rows = True: should be a valid integer"),
        ("rows = 8", "row = 8", "compute.row: unknown key; did you mean 'rows'?"),
        ('kind = "bit_serial"', 'kind = "bitserial"', "compute.kind: 'bitserial' is not a compute kind; did"),
        ('kind = "bit_serial"', "", "compute.kind: missing; write one of affine, bit_serial, lanes, rates, spatial"),
        ('kind = "bit_serial"', 'kind = "spatial"', "unknown key"),
        ("schema = 1", "schema = 2", "schema = 2: should be 1"),
        ('unsupported = "error"', 'unsupported = "maybe"', "unsupported = 'maybe': should be 'error' or 'round_up'"),
        ("weight_bits = [1, 2", "weight_bits = [2, 1", "list the widths once each, from few bits to many"),
        ("weight_bits = [1, 2", "weight_bits = [0, 2", "weight_bits.0 = 0: should be greater than or equal"),
        ("[clock]", "[clok]", "clok: unknown key; did you mean 'clock'?"),
        ("schema = 1", "schema = 1 1", "not a TOML file"),
    ],
)  # fmt: skip
def test_a_wrong_profile_says_what_to_mend(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    assert old in TEXTS["bismo-edge"]
    path.write_text(TEXTS["bismo-edge"].replace(old, new))
    with pytest.raises(HardwareError) as caught:
        hwmodels.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("mpic", "macs_per_cycle = 6.5", "macs_per_cycle = -6.5", "compute.rates.0.macs_per_cycle = -6.5: should be greater"),
        ("mpic", "macs_per_cycle = 6.5", "rate = 6.5", "compute.rates.0.rate: unknown key; known keys are weight_bits,"),
        ("mpic", ", macs_per_cycle = 6.5", "", "compute.rates.0: give the rate once: macs_per_cycle or tera_ops_per_s"),
        ("mpic", "weight_bits = 2, activation_bits = 2", "weight_bits = 4, activation_bits = 2", "w4a2 has two rows"),
        ("mpic", "weight_bits = 2, activation_bits = 2", "weight_bits = 3, activation_bits = 2",
         "compute: no rate for w2a2; add its row to rates, or leave it out of precision.pairs"),
        ("mpic", "activation_bits = [2, 4, 8]", "activation_bits = [4, 8]", "compute: a rate for w2a2, which precision does not"),
        ("xpulpnn", "pairs = [[2, 2]", "pairs = [[3, 3]", "precision: pair [3, 3] is not among weight_bits x activation_bits"),
        ("gap8", "{ 4 = 2, 2 = 4 }", "{ four = 2 }", "precision.channel_multiple: 'four' is not a width; write { 4 = 2 }"),
        ("gap8", "cores = 8", "cores = 0", "compute.cores = 0: should be greater than or equal to 1"),
        ("edge-tpu", 'holds = ["weights"]', "holds = []", "memory.0: holds: memory 'usb' holds nothing; list weights, inputs"),
        ("edge-tpu", 'holds = ["weights"]', 'holds = ["weight"]', "memory.0.holds.0 = 'weight': should be 'weights'"),
        ("edge-tpu", 'resident = ["weights"]', 'resident = ["inputs"]', "memory.1: resident: inputs cannot stay where it is not"),
        ("edge-tpu", "size_bytes = 8400000", "bandwidth_bytes_per_s = 1e9", "resident: what stays has to fit: give size_bytes"),
        ("edge-tpu", "bandwidth_bytes_per_s = 0.44e9", "", "memory.0: memory 'usb' changes nothing: give size_bytes, a"),
        ("edge-tpu", "bandwidth_bytes_per_s = 0.44e9", "bandwidth = 0.44e9", "memory.0.bandwidth: unknown key; did you mean"),
        ("edge-tpu", "bandwidth_bytes_per_s = 0.44e9", "bandwidth_bytes_per_s = 1\nbandwidth_bits_per_cycle = 1", "not both"),
        ("edge-tpu", 'name = "chip"', 'name = "usb"', "memory: two are called 'usb'; give each its own name"),
        ("edge-tpu", "per_layer_s = 42e-6", "per_layer_s = nan", "overhead.per_layer_s = nan: should be a finite number"),
        ("edge-tpu", "efficiency = 0.25", "efficiency = 25", "compute.efficiency = 25: should be less than or equal to 1"),
        ("cortex-m7", "per_mac_cycles = 9.527", "per_mac = 9.527", "compute.depthwise.per_mac: unknown key; did you mean"),
        ("cortex-m7", "per_mac_cycles = 2.6646", "per_mac_cycles = 0", "compute.linear: every coefficient is 0: a layer that"),
        ("cortex-m7", "weight_bits = 2\nmac", "weight_bits = 4\nmac", "scales: two rows for the same widths; keep one"),
        ("cortex-m7", "activation_bits = 2\nred", "red", "compute.scales.3: say for which weight_bits or activation_bits"),
        ("generic-45nm", 'reads = "per_mac"', 'reads = "twice"', "memory.1.reads = 'twice': should be 'once' or 'per_mac'"),
        ("nvidia-t4", "nvidia-t4.csv", "none.csv", "table.file = '../tables/none.csv': no such file beside the profile"),
    ],
)  # fmt: skip
def test_a_wrong_data_sheet_says_what_to_mend(name, old, new, message):
    assert old in TEXTS[name], name
    where = str(profile.PROFILES / "mine.toml")
    with pytest.raises(HardwareError) as caught:
        profile.parse(tomllib.loads(TEXTS[name].replace(old, new, 1)), where)
    assert str(caught.value).startswith(f"{where}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_sources_is_a_draft_and_says_so():
    data = tomllib.loads(TEXTS["bitfusion"])
    for sources in ({}, {"sources": []}):
        draft = profile.parse({**{k: v for k, v in data.items() if k != "sources"}, **sources}, "mine.toml")
        assert draft.draft
        assert draft.summary == data["summary"] + " (draft: names no sources)"
    for sources in ([""], "somewhere"):
        with pytest.raises(HardwareError, match="sources"):
            profile.parse({**data, "sources": sources}, "mine.toml")


def test_numbers_that_are_assumed_are_numbers_of_the_file():
    data = tomllib.loads(TEXTS["mpic"])
    known = ["clock.frequency_hz", "compute.rates.3.macs_per_cycle", "energy"]
    assert profile.parse({**data, "assumed": known}, "mine.toml").profile.assumed == known
    with pytest.raises(HardwareError, match=r"mine\.toml: assumed: there is no number 'clock\.frequency'"):
        profile.parse({**data, "assumed": ["clock.frequency"]}, "mine.toml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bismo-edgy", "unknown device 'bismo-edgy'; did you mean 'bismo-edge'"),
        ("", "unknown device ''; known devices: bismo-cloud"),
        ("missing.toml", "missing.toml: cannot read this device profile: No such file"),
        ("/", "cannot read this device profile"),
        ("no_such_module_here:build", "device 'no_such_module_here:build': cannot import it"),
        ("json:nothing", "cannot import it"),
        (":", "cannot import it"),
        ("builtins:dict", "gives a dict, not a hwmodels.HardwareModel"),
    ],
)
def test_an_unknown_device_says_what_to_mend(name, message):
    with pytest.raises(HardwareError, match=re.escape(message)) as caught:
        hwmodels.load(name)
    assert "\n" not in str(caught.value)


def test_a_python_model(tmp_path, monkeypatch):
    (tmp_path / "my_boards.py").write_text("import hwmodels\ndef build():\n    return hwmodels.load('bitfusion')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert hwmodels.load("my_boards:build").name == "bitfusion"


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-3, 40), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def paths_of(table, prefix=()):
    """Every place in nested tables and lists, as the keys and places that lead to it."""
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*prefix, key))


@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_content_loads_or_is_refused(name, data):
    content = tomllib.loads(TEXTS[name])
    where = str(profile.PROFILES / "mutated.toml")
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(paths_of(content), key=str)))
        table = content
        for key in path[:-1]:
            table = table[key]
        match data.draw(st.sampled_from(["drop", "set", "add"])):
            case "drop":
                del table[path[-1]]
            case "set":
                table[path[-1]] = data.draw(VALUES)
            case "add" if isinstance(table, dict):
                table[data.draw(st.text(max_size=8))] = data.draw(VALUES)
            case "add":
                table.append(data.draw(VALUES))
    try:
        device = profile.parse(content, where)
    except HardwareError as error:
        assert str(error).startswith(f"{where}: ")
        assert len(str(error).splitlines()) == 1
        return
    layer, depthwise = linear("fc", 20, 30), conv("dw", 16, 16, 3, 5, groups=16)
    for each, choice in product((layer, depthwise), (wa(*device.native_pairs[0]), FLOAT_CHOICE)):
        if device.supports(each, choice):
            assert all(0 <= value < float("inf") for value in device.cost(each, choice, 2).values.values())


@given(name=st.sampled_from(sorted(TEXTS)), at=st.floats(0, 1), cut=st.integers(0, 30), put=st.binary(max_size=6))
@example(name="bitfusion", at=0.0, cut=0, put=b"x = " + b"9" * 5000 + b"\n")
@example(name="bitfusion", at=0.0, cut=0, put=b"x = " + b"[" * 5000)
@settings(max_examples=300, deadline=None)
def test_mutated_text_loads_or_is_refused(tmp_path_factory, name, at, cut, put):
    raw = TEXTS[name].encode()
    start = int(at * len(raw))
    path = tmp_path_factory.getbasetemp() / "mutated.toml"
    path.write_bytes(raw[:start] + put + raw[start + cut :])
    try:
        hwmodels.load(path)
    except HardwareError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error).splitlines()) == 1


def test_the_readmes_example_is_a_device(tmp_path):
    example_text = re.search(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len(example_text.splitlines()) < 15
    (tmp_path / "mine.toml").write_text(example_text)
    device = hwmodels.load(str(tmp_path / "mine.toml"))
    assert device.cost(linear("fc", 512, 64), wa(4, 4), 1).values["latency_s"] > 0


def test_every_compute_kind_is_registered_and_used():
    assert {tomllib.loads(text)["compute"]["kind"] for text in TEXTS.values()} == set(profile.KINDS)


def test_import_is_lean():
    heavy = "{'torch', 'ray', 'optuna', 'onnx', 'numpy', 'pydantic'}"
    code = f"import sys, hwmodels; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = f"import sys, hwmodels; hwmodels.load('bitfusion'); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy', 'pydantic']"
