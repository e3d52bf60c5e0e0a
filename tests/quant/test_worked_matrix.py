"""One 4 x 4 matrix in every family of formats, worked by hand.

 2.09 -0.98  1.48  0.09
 0.05 -0.14 -1.08  2.12
-0.91  1.92  0    -1.03
 1.87  0     1.53  1.49
"""

from __future__ import annotations

import pytest
import torch

from haqsearch.quant import encode

MATRIX = torch.tensor(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]]
)


def check(text, codes, nbytes, **parameters):
    q = encode(MATRIX, text)
    assert q.codes.tolist() == codes
    assert q.nbytes == nbytes
    assert q.parameters.keys() == parameters.keys()
    for name, value in parameters.items():
        torch.testing.assert_close(
            q.parameters[name].double(), torch.tensor(value, dtype=torch.float64), rtol=1e-6, atol=1e-8
        )
    return q


def test_two_bits_asymmetric_by_tensor():
    """S = (2.12 + 1.08) / 3 = 1.0667. Z = round(1.08 / 1.0667) = round(1.0125) = 1 of codes 0 .. 3, and 1 - 2 = -1 of the
    signed codes -2 .. 1. Of the first row x / S = 1.96, -0.92, 1.39, 0.08: 2, -1, 1, 0, and 1 more is 3, 0, 2, 1.
    """
    codes = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    q = check("uint2:tensor", codes, 4 + 4 + 1, scale=[[3.2 / 3]], zero_point=[[1]])
    assert round(float(q.parameters["scale"]), 2) == 1.07
    assert int(q.parameters["zero_point"]) - 2 ** (q.format.width - 1) == -1
    s = 3.2 / 3
    expected = torch.tensor([[2 * s, -s, s, 0], [0, 0, -s, 2 * s], [-s, 2 * s, 0, -s], [2 * s, 0, s, s]])
    torch.testing.assert_close(q.dequantize(), expected)
    assert encode(MATRIX, "uint2").codes.tolist() == codes  # what uint2 means


def test_two_bits_symmetric_by_tensor():
    """S = 2.12 / 1. Third row: -0.91 / 2.12 = -0.43 and -1.03 / 2.12 = -0.49 round to 0, 1.92 / 2.12 = 0.91 to 1."""
    check("int2:tensor", [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, 0], [1, 0, 1, 1]], 4 + 4, scale=[[2.12]])


@pytest.mark.parametrize("text", ["int2", "int2:channel"])
def test_two_bits_symmetric_by_channel(text):
    """S is a row's largest magnitude. Now -1.03 / 1.92 = -0.54 rounds to -1."""
    codes = [[1, 0, 1, 0], [0, 0, -1, 1], [0, 1, 0, -1], [1, 0, 1, 1]]
    check(text, codes, 4 + 16, scale=[[2.09], [2.12], [1.92], [1.87]])


def test_two_bits_symmetric_by_groups_of_two():
    """S is a pair's largest magnitude. -0.14 is the largest of its pair; -0.98 / 2.09 = -0.47 and -0.91 / 1.92 stay 0."""
    codes = [[1, 0, 1, 0], [0, -1, -1, 1], [0, 1, 0, -1], [1, 0, 1, 1]]
    check("int2:group=2", codes, 4 + 32, scale=[[2.09, 1.48], [0.14, 2.12], [1.92, 1.03], [1.87, 1.53]])


def test_one_bit_of_twos_complement():
    """S is a row's largest negative magnitude, 1 where there is none; half of it and less is 0: 0.14 / 1.08 is."""
    codes = [[0, -1, 0, 0], [0, 0, -1, 0], [-1, 0, 0, -1], [0, 0, 0, 0]]
    check("int1", codes, 2 + 16, scale=[[0.98], [1.08], [1.03], [1.0]])


def test_two_levels_of_scales():
    """A row is one vector, its scale the row's largest / 7, that is 15 * gamma. First row: 2.09 / 7 = 0.2986, and
    x / 0.2986 = 7, -3.28, 4.96, 0.30. Second: x / 0.3029 = 0.17, -0.46, -3.57, 7.
    """
    codes = [[7, -3, 5, 0], [0, 0, -4, 7], [-3, 7, 0, -4], [7, 0, 6, 6]]
    gamma = [[2.09 / 105], [2.12 / 105], [1.92 / 105], [1.87 / 105]]
    check("vsq4", codes, 8 + 2 + 16, vector_scale=[[15]] * 4, scale=gamma)


def test_micro_exponents():
    """A row is one block. First row: E = 1 as 2 <= 2.09 < 4. Its first pair holds that, t = 0, step 2**(1 - 0 - 1) = 1:
    2.09, -0.98 are 2, -1. The second lies below 2, t = 1, step 1/2: 2.96, 0.18 are 3, 0. Third row: E = 0, step 1/2,
    1.92 / 0.5 = 3.84 would be 4, and the largest code is 3. Bytes: 16 codes of 3 bits, 8 bits, 4 exponents.
    """
    codes = [[2, -1, 3, 0], [0, 0, -1, 2], [-2, 3, 0, -2], [3, 0, 3, 3]]
    check("mx4", codes, 6 + 1 + 4, micro_exponent=[[0, 1], [1, 0], [0, 0], [0, 0]], exponent=[[1], [1], [0], [0]])


def test_microscaling_e2m1():
    """Values 0, 0.5, 1, 1.5, 2, 3, 4, 6 are codes 0 .. 7, and 8 more is minus. First row: X = 2**(1 - 2) = 1/2,
    x / X = 4.18, -1.96, 2.96, 0.18: 4, -2, 3, 0. Second: 0.1, -0.28, -2.16, 4.24: 0, -0.5, -2, 4. Third: X = 1/4,
    -3.64, 7.68, 0, -4.12: -4, 6 (the largest), 0, -4. Fourth: 7.48, 0, 6.12, 5.96: 6, 0, 6, 6.
    """
    codes = [[6, 8 + 4, 5, 0], [0, 8 + 1, 8 + 4, 6], [8 + 6, 7, 0, 8 + 6], [7, 0, 7, 7]]
    check("mxfp4", codes, 8 + 4, exponent=[[-1], [-1], [-2], [-2]])


def test_microscaling_e2m3():
    """First row, X = 1/2: 4.18 has step 1/2, 4 is exponent field 3: 0b11_000. -1.96 has step 1/8 and rounds to -2,
    0b1_10_000. 2.96 has step 1/4, 3 = 2 * (1 + 4/8), 0b10_100. 0.18 has step 1/8, 0b00_001.
    """
    q = encode(MATRIX, "mxfp6")
    assert q.codes[0].tolist() == [0b011000, 0b110000, 0b010100, 0b000001]
    assert q.parameters["exponent"].tolist() == [[-1], [-1], [-2], [-2]]
    assert q.nbytes == 12 + 4


def test_microscaling_e4m3():
    """First row, X = 2**(1 - 8): x / X = 267.52, -125.44, 189.44, 11.52 with steps 32, 8, 16, 1: 256, -128, 192, 12.
    Exponent fields are 7 more than the exponents 8, 7, 7, 3; fractions 0, 0, 4/8, 4/8.
    """
    q = encode(MATRIX, "mxfp8")
    assert q.codes[0].tolist() == [15 * 8, 128 + 14 * 8, 14 * 8 + 4, 10 * 8 + 4]
    assert q.dequantize()[0].tolist() == [2.0, -1.0, 1.5, 0.09375]
    assert q.nbytes == 16 + 4


def test_microscaling_integers():
    """First two rows: X = 2, x * 64 / 2 = 66.88, -31.36, 47.36, 2.88; 1.6, -4.48, -34.56, 67.84. The others: X = 1,
    x * 64 = -58.24, 122.88, 0, -65.92; 119.68, 0, 97.92, 95.36.
    """
    codes = [[67, -31, 47, 3], [2, -4, -35, 68], [-58, 123, 0, -66], [120, 0, 98, 95]]
    check("mxint8", codes, 16 + 4, exponent=[[1], [1], [0], [0]])


def test_kmeans():
    """Four clusters: -0.98, -1.08, -0.91, -1.03 (mean -1.00); 0.09, 0.05, -0.14, 0, 0 (0); 1.48, 1.53, 1.49 (1.50);
    2.09, 2.12, 1.92, 1.87 (2.00).
    """
    codes = [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    check("kmeans2", codes, 4 + 16, codebook=[-1.0, 0.0, 1.5, 2.0])


def test_binary():
    """Means of |x|: 4.64 / 4, 3.39 / 4, 3.86 / 4, 4.89 / 4. Zero counts as positive."""
    codes = [[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1]]
    q = check("binary", codes, 2 + 16, scale=[[1.16], [0.8475], [0.965], [1.2225]])
    torch.testing.assert_close(q.dequantize()[0], torch.tensor([1.16, -1.16, 1.16, 1.16]))


def test_ternary():
    """0.7 times those means: 0.812, 0.593, 0.676, 0.856. Beyond them lie 2.09, 0.98, 1.48 (mean 4.55 / 3); 1.08, 2.12
    (1.6); 0.91, 1.92, 1.03 (3.86 / 3); 1.87, 1.53, 1.49 (1.63).
    """
    codes = [[1, -1, 1, 0], [0, 0, -1, 1], [-1, 1, 0, -1], [1, 0, 1, 1]]
    check("ternary", codes, 4 + 16, scale=[[4.55 / 3], [1.6], [3.86 / 3], [1.63]])


def test_floats():
    """2.09 lies between 2 and 4: float16 has steps of 2**-9 there, 1070.08 of them; bfloat16 of 2**-6, 133.76."""
    assert encode(MATRIX, "float16").dequantize()[0, 0] == 1070 / 512
    assert encode(MATRIX, "bfloat16").dequantize()[0, 0] == 134 / 64
    assert torch.equal(encode(MATRIX, "float32").dequantize(), MATRIX)
    assert [encode(MATRIX, text).nbytes for text in ("float16", "bfloat16", "float32")] == [32, 32, 64]
