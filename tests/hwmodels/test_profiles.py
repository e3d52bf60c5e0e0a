from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from device_shapes import linear, wa
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hwmodels
from haqsearch.errors import HardwareError
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
    for key, value in table.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, key))


@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
@settings(max_examples=300, deadline=None)
def test_mutated_content_loads_or_is_refused(name, data):
    content = tomllib.loads(TEXTS[name])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(paths_of(content))))
        table = content
        for key in path[:-1]:
            table = table[key]
        match data.draw(st.sampled_from(["drop", "set", "add"])):
            case "drop":
                del table[path[-1]]
            case "set":
                table[path[-1]] = data.draw(VALUES)
            case "add":
                table[data.draw(st.text(max_size=8))] = data.draw(VALUES)
    try:
        device = profile.parse(content, "mutated.toml")
    except HardwareError as error:
        assert str(error).startswith("mutated.toml: ")
        assert len(str(error).splitlines()) == 1
        return
    layer = linear("fc", 20, 30)
    widths = device.profile.precision
    cost = device.cost(layer, wa(widths.weight_bits[0], widths.activation_bits[0]), 2)
    assert all(0 <= value < float("inf") for value in cost.values.values())


@given(name=st.sampled_from(sorted(TEXTS)), at=st.floats(0, 1), cut=st.integers(0, 30), put=st.binary(max_size=6))
@example(name="bitfusion", at=0.0, cut=0, put=b"x = " + b"9" * 5000 + b"\n")
@example(name="bitfusion", at=0.0, cut=0, put=b"x = " + b"[" * 5000)
@settings(max_examples=200, deadline=None)
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
