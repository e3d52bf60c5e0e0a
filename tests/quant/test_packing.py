from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.errors import DataError
from haqsearch.quant import packing
from haqsearch.quant.packing import pack_bits, unpack_bits

from .laws import laws


@laws
@given(st.integers(1, 16), st.integers(0, 67), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack_and_takes_the_bits_it_says(width, count, seed):
    values = torch.randint(2**width, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack_bits(values, width)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * width // 8)
    assert torch.equal(unpack_bits(packed, width, count), values)


@pytest.mark.parametrize("width", [1, 3, 11, 17, 32])
def test_chunks_join_without_a_seam(width, monkeypatch):
    values = torch.randint(2**width, (101,), generator=torch.Generator().manual_seed(width))
    whole = pack_bits(values, width)
    monkeypatch.setattr(packing, "_CHUNK", 16)
    assert torch.equal(pack_bits(values, width), whole)
    assert torch.equal(unpack_bits(whole, width, 101), values)


def test_three_bits_by_hand():
    """5, 1, 7 are 101, 001, 111, the least significant bit first: 101 100 11 | 1, that is 0b11001101 and 0b1."""
    assert pack_bits(torch.tensor([5, 1, 7]), 3).tolist() == [0b11001101, 0b1]


@pytest.mark.parametrize(("values", "width"), [([4], 2), ([-1], 8), ([256], 8), ([0], 0), ([0], 33)])
def test_what_does_not_fit_is_refused(values, width):
    with pytest.raises(DataError, match="cannot pack"):
        pack_bits(torch.tensor(values), width)


@pytest.mark.parametrize(
    "packed", [torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.zeros(1, 1, dtype=torch.uint8)]
)
def test_other_bytes_than_so_many_are_refused(packed):
    with pytest.raises(DataError, match="2 integers of 3 bits take 1 bytes"):
        unpack_bits(packed, 3, 2)
