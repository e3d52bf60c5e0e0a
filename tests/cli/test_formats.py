"""haqsearch formats, as main() runs it."""

from __future__ import annotations

import json

import pytest

from haqsearch.cli import COMMANDS, main
from haqsearch.spec.formats import KINDS, NAMES


@pytest.fixture
def formats(monkeypatch, capsys):
    """(exit code, standard output, standard error) of ``haqsearch formats`` with these arguments, on 80 columns."""
    monkeypatch.setitem(COMMANDS, "formats", "haqsearch.cli.formats")
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["haqsearch", "formats", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    return call


def test_the_table_has_every_family_and_fits_80_columns(formats):
    code, out, err = formats()
    assert code == 0 and not err
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80 and len(lines) < 50
    assert "…" not in out
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in lines}
    said = " ".join(" ".join(lines).split())
    for kind, family in KINDS.items():
        assert any(name.startswith(kind) for name in rows), kind
        assert all(word in said for word in family.summary.split()), family.summary
    assert any(row.startswith("int2 .. int8 2 .. 8 weights") for row in rows.values())
    assert any(row.startswith("uint2 .. uint8 2 .. 8 activations") for row in rows.values())
    assert any(row.startswith("float32 32 weights, activations") for row in rows.values())
    assert any(row.startswith("vsq4 4.25 weights") for row in rows.values())
    assert any(row.startswith("int4:group=128 4.25 weights") for row in rows.values())
    assert any(row.startswith("kmeans1 .. kmeans8 1 .. 8 weights") for row in rows.values())
    assert any(row.startswith("ternary 2 weights") for row in rows.values())


def test_json_has_every_name(formats):
    code, out, _ = formats("--json")
    found = {entry["format"]: entry for entry in json.loads(out)}
    assert code == 0 and found.keys() >= set(NAMES)
    assert found["mxfp4"] == {
        "format": "mxfp4",
        "family": "mxfp",
        "bits": 4.25,
        "uses": ["weights", "tensors"],
        "in_programs": True,
        "computed_as": "int8",
        "summary": KINDS["mxfp"].summary,
    }
    assert found["int4"]["uses"] == ["weights", "activations", "tensors"] and found["int4"]["computed_as"] == "int4"
    assert found["bfloat16"]["uses"] == ["tensors"] and found["bfloat16"]["computed_as"] is None


def test_one_format_with_its_bits(formats):
    code, out, _ = formats("int3:group=64")
    assert code == 0
    assert "int3:group=64" in out and "3.5" in out and "int2" not in out
    code, out, _ = formats("uint3:group=5", "--json")
    assert [entry["bits"] for entry in json.loads(out)] == [3 + 35 / 5]


@pytest.mark.parametrize(("name", "near"), [("mx5", "mx4"), ("int4:grp=16", "int4:group=16"), ("kmeans9", "kmeans8")])
def test_an_unknown_one_gets_the_nearest_names(formats, name, near):
    code, out, err = formats(name)
    assert code == 2 and not out
    assert err.startswith(f"haqsearch: unknown number format '{name}'; did you mean ")
    assert near in err and len(err.splitlines()) == 1
