"""What a family of formats has to say; one family is one file of this folder and one line of ``FAMILIES``.

A family sees a tensor as rows: (channels, elements of a channel), float64, finite, not empty. It turns them into codes and
parameters and back, and says how these lie in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from haqsearch.spec import Format


@dataclass(frozen=True)
class Field:
    """Part of an encoded tensor: integers low .. low + 2**width - 1, kept in ``width`` bits each; width 0: float32."""

    shape: tuple[int, ...]
    width: int
    low: int = 0

    @property
    def count(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes when packed: whole bytes for the whole part."""
        return (self.count * (self.width or 32) + 7) // 8


class Family(Protocol):
    """Codes are an integer tensor (rows, length); parameters are the fields of ``layout`` other than ``codes``."""

    @staticmethod
    def layout(format: Format, rows: int, length: int) -> dict[str, Field]:
        """The parts of a tensor of ``rows`` channels of ``length`` elements, ``codes`` first."""

    @staticmethod
    def encode(x: Tensor, format: Format) -> dict[str, Tensor]:
        """The parts of ``x`` (rows, length), as ``layout`` says, integers as int32 and reals as float32."""

    @staticmethod
    def decode(parts: Mapping[str, Tensor], format: Format) -> Tensor:
        """Real values (rows, length), float64."""


@dataclass(frozen=True)
class Steps:
    """What integer programs can hold of a format whose blocks share a scale: codes level * step, all within int8.

    block    elements of a channel that share a step
    levels   integers that a stored code may stand for, ascending int64, zero among them
    steps    ascending int64, from 1
    pair     elements of a block that may halve its step together; 0: none may
    """

    block: int
    levels: Tensor
    steps: Tensor
    pair: int = 0


class Stepped(Family, Protocol):
    """A family whose weights programs compute with as level * step."""

    @staticmethod
    def steps(format: Format) -> Steps:
        """Levels and steps of ``format``."""

    @staticmethod
    def held(level: Tensor, step: Tensor, format: Format) -> dict[str, Tensor]:
        """The parts whose ``decode`` is ``level`` * ``step`` (int64, (rows, length) both), exactly; own scales are 1."""


def symmetric(largest: int) -> Tensor:
    """All integers from -``largest`` to ``largest``."""
    return torch.arange(-largest, largest + 1)


def first(x: Tensor, size: int) -> Tensor:
    """(rows, length) -> the first element of every block of ``size``: (rows, blocks)."""
    return x[:, ::size]


def powers_of_two(largest: int) -> Tensor:
    """1, 2, 4 .. up to ``largest``, of which there is at least one."""
    return 2 ** torch.arange(largest.bit_length())


def log2(x: Tensor) -> Tensor:
    """Exponents (int64) of powers of two."""
    return torch.frexp(x.double())[1].to(torch.int64) - 1


def blocks(x: Tensor, size: int) -> Tensor:
    """``x`` (rows, length) cut into (rows, blocks, size); the last block is filled up with zeros."""
    rows, length = x.shape
    return torch.nn.functional.pad(x, (0, -length % size)).reshape(rows, -1, size)


def joined(x: Tensor, length: int) -> Tensor:
    """Inverse of ``blocks``: (rows, blocks, size) -> (rows, length)."""
    return x.reshape(x.shape[0], -1)[:, :length]


def spread(x: Tensor, size: int, length: int) -> Tensor:
    """Every value of ``x`` (rows, blocks) at each of its block's elements: (rows, length)."""
    return x.repeat_interleave(size, 1)[:, :length]


def ceil_div(a: int, b: int) -> int:
    """The least integer that is at least a / b."""
    return -(-a // b)


def exponent(x: Tensor) -> Tensor:
    """floor(log2(x)) as int64, exactly, of ``x`` >= 0; -127, the least shared exponent, where x is zero or below 2**-127."""
    found = torch.frexp(x)[1].to(torch.int64) - 1
    return torch.where(x > 0, found, torch.full_like(found, -127)).clamp_(min=-127)


def power(e: Tensor) -> Tensor:
    """2**e, exactly, as float64."""
    return torch.ldexp(torch.ones(e.shape, dtype=torch.float64), e)
