"""Slow, plain integer loops: what each kernel is defined to compute, written without looking at how it does."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows(x, fill, kernel, stride, padding, dilation):
    """(oh, ow, the window's values (B, C, kh, kw)) of ``x`` (B, C, H, W), padded with ``fill``."""
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = padding, stride, dilation, kernel
    padded = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    rows, columns = (out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    for i, j in itertools.product(range(rows), range(columns)):
        r = i * sh + dh * np.arange(kh)
        c = j * sw + dw * np.arange(kw)
        yield i, j, padded[:, :, r[:, None], c[None, :]]


def conv2d(x, zero_point, weight, stride, padding, dilation, groups):
    batch, n = x.shape[0], weight.shape[0]
    kernel = weight.shape[2:]
    shape = [out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    out = np.zeros((batch, n, *shape), dtype=np.int64)
    inside, outside = weight.shape[1], n // groups
    for i, j, window in windows(x, zero_point, kernel, stride, padding, dilation):
        for o in range(n):
            g = o // outside
            values = window[:, g * inside : (g + 1) * inside] - zero_point
            out[:, o, i, j] = (values * weight[o].astype(np.int64)).sum((1, 2, 3))
    return out


def pool(x, fill, reduce, kernel, stride, padding, dilation=(1, 1)):
    shape = [out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    out = np.zeros((*x.shape[:2], *shape), dtype=np.int64)
    for i, j, window in windows(x, fill, kernel, stride, padding, dilation):
        out[:, :, i, j] = reduce(window, axis=(2, 3))
    return out


def epilogue(acc: int, bias: int, m0: int, shift: int, zero_point: int, low: int, high: int) -> int:
    rounded = math.floor(Fraction((acc + bias) * m0, 2**shift) + Fraction(1, 2))
    return min(max(rounded + zero_point, low), high)
