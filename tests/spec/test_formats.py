from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import PolicyError
from haqsearch.spec import FLOAT32, Format

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
        assert format in {*INTS, *UINTS, FLOAT32}


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
    [("in8", "int8"), ("unit4", "uint4"), ("float23", "float32"), ("INT4", "int4"), ("int4:group=16", "int4")],
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
