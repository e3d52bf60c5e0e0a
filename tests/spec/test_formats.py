from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import PolicyError
from haqsearch.spec import FLOAT32, Choice, Format, Policy
from haqsearch.spec.formats import KINDS, NAMES

from .toys import INTS, UINTS, formats


@given(formats)
def test_parse_inverts_print(format):
    assert Format.parse(str(format)) == format
    assert Format.parse(f"  {format}\n") == format


@given(st.text(max_size=12))
def test_any_text_is_a_format_or_a_policy_error(text):
    try:
        format = Format.parse(text)
    except PolicyError as error:
        assert repr(text) in str(error)
        assert "did you mean" in str(error)
    else:
        assert format in {*INTS, *UINTS, FLOAT32} or str(format) in [*CODEBOOKS, *BLOCKS] or format.granularity


@pytest.mark.parametrize("format", INTS, ids=str)
def test_signed_codes_are_symmetric_and_leave_out_the_lowest(format):
    assert format.code_min == -format.code_max
    assert format.code_max - format.code_min + 1 == 2**format.width - 1


@pytest.mark.parametrize("format", UINTS, ids=str)
def test_unsigned_codes_are_all_codes(format):
    assert format.code_min == 0
    assert format.code_max == 2**format.width - 1


@pytest.mark.parametrize(
    ("text", "near"),
    [("in8", "int8"), ("unit4", "uint4"), ("float23", "float32"), ("INT4", "int4"), ("int9:group=16", "int9")],
)
def test_a_slip_gets_the_nearest_name(text, near):
    with pytest.raises(PolicyError) as caught:
        Format.parse(text)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    "text", ["int1", "int0", "uint0", "int17", "uint17", "float16", "float64", "int-4", "", 8, None]
)
def test_widths_beyond_the_accumulator_and_other_types_are_refused(text):
    with pytest.raises(PolicyError, match="unknown number format"):
        Format.parse(text)


def test_a_float_format_has_no_codes():
    for bound in ("code_min", "code_max"):
        with pytest.raises(PolicyError, match="float32 has no integer codes"):
            getattr(FLOAT32, bound)
    assert FLOAT32.is_float
    assert FLOAT32.bits == 32.0


@given(st.sampled_from([INTS, UINTS]), st.data())
def test_formats_of_a_kind_are_ordered_by_width(kind, data):
    a, b = data.draw(st.sampled_from(kind)), data.draw(st.sampled_from(kind))
    assert (a < b) == (a.width < b.width) == (a.code_max < b.code_max) == (a.bits < b.bits)


# -- formats of tensors ---------------------------------------------------------------------------------------------------

suffixes = st.one_of(st.sampled_from(["", ":tensor", ":channel"]), st.integers(1, 10**9 - 1).map(":group={}".format))
granular = st.builds("{}{}{}".format, st.sampled_from(["int", "uint"]), st.integers(1, 16), suffixes)
every = st.one_of(st.sampled_from(sorted(NAMES)), granular)
CODEBOOKS = [*(f"kmeans{width}" for width in range(1, 9)), "binary", "ternary"]
BLOCKS = ["vsq4", "mx4", "mx6", "mx9", "mxfp4", "mxfp6", "mxfp8", "mxint8"]
GROUPS = ["int2:group=16", "int4:group=5", "int8:group=1"]
EXOTIC = ["int1", "float16", "bfloat16"]
WRITTEN_OUT = {":channel": "int", ":tensor": "uint"}  # what is usual


@given(every)
def test_of_inverts_print(text):
    format = Format.of(text)
    usual = next(
        (suffix for suffix, kind in WRITTEN_OUT.items() if text.endswith(suffix) and text.startswith(kind)), ""
    )
    assert str(format) == text.removesuffix(usual)
    assert Format.of(f" {text}\n") == Format.of(str(format)) == format
    integers = {*INTS, *(Format("int", f.width, "tensor") for f in INTS), *UINTS}
    group = format.kind == "int" and format.group and 2 <= format.width <= 8
    known = format in {*integers, FLOAT32} or text in [*CODEBOOKS, *BLOCKS] or bool(group)
    assert format.in_programs == known and {format.kind for format in map(Format.of, EXOTIC)} <= KINDS.keys()
    assert format.uses[-1] == "tensors"
    assert format.in_programs or format.uses == ("tensors",)


@given(st.text(max_size=12))
def test_any_text_is_a_format_of_tensors_or_a_policy_error(text):
    try:
        assert Format.of(str(Format.of(text))) == Format.of(text)
    except PolicyError as error:
        assert repr(text) in str(error) and "did you mean" in str(error)


def test_the_names_are_those_of_the_issue():
    widths = {f"{kind}{width}" for kind in ("int", "uint") for width in range(1, 17)}
    others = "vsq4 mx4 mx6 mx9 mxfp4 mxfp6 mxfp8 mxint8 binary ternary float16 bfloat16 float32".split()
    assert set(NAMES) == widths | {f"kmeans{width}" for width in range(1, 9)} | set(others)
    assert {format.kind for format in NAMES.values()} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int4", 4), ("int4:channel", 4), ("uint4:tensor", 4), ("int1", 1), ("float16", 16), ("float32", 32),
        ("int4:group=16", 4 + 32 / 16), ("uint4:group=16", 4 + (32 + 4) / 16), ("int2:group=1", 34), ("int3:group=128", 3.25),
        ("vsq4", 4.25), ("mx4", 4), ("mx6", 6), ("mx9", 9), ("mxfp4", 4.25), ("mxfp6", 6.25), ("mxfp8", 8.25),
        ("mxint8", 8.25), ("kmeans3", 3), ("binary", 1), ("ternary", 2),
    ],
)  # fmt: skip
def test_bits_count_what_grows_with_the_elements(text, bits):
    assert Format.of(text).bits == bits and isinstance(Format.of(text).bits, float)


@pytest.mark.parametrize(
    ("text", "near"),
    [("mx5", "mx4"), ("mx5", "mx6"), ("mxfp5", "mxfp4"), ("kmean4", "kmeans4"), ("trinary", "ternary"), ("vsq", "vsq4"),
     ("bf16", "bfloat16"), ("int4:grp=16", "int4:group=16"), ("uint3:chanel", "uint3:channel"), ("BINARY", "binary")],
)  # fmt: skip
def test_a_slip_gets_the_nearest_name_of_all(text, near):
    with pytest.raises(PolicyError, match="unknown number format") as caught:
        Format.of(text)
    assert f"{near}," in f"{caught.value},".replace("?", "")


@pytest.mark.parametrize("text", ["int0", "int17", "int17:tensor", "uint0:group=4", "int4:group=0", "int4:group=-1", "int4:",
                                  "kmeans0", "kmeans9", "vsq4:tensor", "float64", "mx4:group=8", "", 8, None])  # fmt: skip
def test_what_there_is_not_is_refused(text):
    with pytest.raises(PolicyError, match="unknown number format"):
        Format.of(text)


@pytest.mark.parametrize("text", [*EXOTIC, "int9:group=16", "int1:group=2", "uint4:group=16", "uint8:channel"])
def test_programs_policies_and_recipes_refuse_a_format_of_tensors_and_say_so(text):
    with pytest.raises(PolicyError, match=f"{text} is for tensors alone") as caught:
        Format.parse(text)
    assert "did you mean" in str(caught.value)
    for choice in (f"{text}/uint8", f"int4/{text}"):
        with pytest.raises(PolicyError, match="is for tensors alone"):
            Choice.parse(choice)
    layers = {"stem": {"weight": text, "activation": "uint8"}}
    with pytest.raises(PolicyError, match=r"layer 'stem': .* is for tensors alone"):
        Policy.from_json({"schema_version": 1, "layers": layers})


@pytest.mark.parametrize("text", [*CODEBOOKS, *BLOCKS, *GROUPS])
def test_weights_may_be_stored_in_other_codes_than_they_are_computed_with(text):
    choice = Choice.parse(f"{text}/uint8")
    assert Choice.parse(str(choice)) == choice
    assert str(choice) == f"{text}/uint8"
    assert choice.weight.uses == ("weights", "tensors")
    computed = "int8:tensor" if text.startswith("kmeans") else "int2" if text in CODEBOOKS else "int8"
    assert choice.computed == Choice.parse(f"{computed}/uint8")
    assert choice.weight.code_max == -choice.weight.code_min == Format.of(computed).code_max
    assert choice.weight.is_decoded and choice.weight.has_steps == (text not in CODEBOOKS)
    assert choice.weight.bits <= choice.computed.weight.bits or text not in CODEBOOKS
    policy = Policy({"stem": choice})
    assert Policy.from_json(policy.to_json()) == policy
    with pytest.raises(PolicyError, match="it is for weights"):
        Policy({"stem": Choice.parse(f"int4/{text}")})


def test_integers_are_computed_as_themselves():
    for text in ("int4", "int4:tensor", "uint8", "float32"):
        assert Format.of(text).computed_as == Format.of(text) and not Format.of(text).is_decoded
    assert Choice.parse("w4a8").computed == Choice.parse("w4a8")


def test_a_layer_may_have_one_weight_scale_in_policies():
    choice = Choice.parse("int4:tensor/uint8")
    assert (str(choice), str(choice.weight)) == ("int4:tensor/uint8", "int4:tensor")
    assert Choice.parse(str(choice)) == choice != Choice.parse("w4a8")
    assert (choice.weight.code_min, choice.weight.code_max) == (-7, 7)
    assert choice.weight.uses == ("weights", "tensors")
    assert choice.weight.bits == Format.of("int4").bits


def test_what_is_usual_may_be_written_out():
    assert Choice.parse("int4:channel/uint8:tensor") == Choice.parse("w4a8")
    assert Format("int", 4, "channel") == Format.of("int4") != Format.of("uint4:channel")
    policies = [Policy({"stem": Choice.parse(text)}) for text in ("int4:channel/uint8", "w4a8")]
    assert policies[0] == policies[1] and policies[0].digest == policies[1].digest


@pytest.mark.parametrize("text", ["float16", "bfloat16", "int9:group=16", "uint4:group=16", "uint8:channel"])
def test_a_format_of_tensors_has_no_codes_in_programs(text):
    """So that one built by hand ends in an error, not in wrong numbers."""
    format = Format.of(text)
    assert not format.is_float
    for bound in ("code_min", "code_max"):
        with pytest.raises(PolicyError, match="is for tensors, not for programs"):
            getattr(format, bound)
