"""Number formats as values.

A format is what a bit-width *means*. Its text form is usable wherever a width is: in recipes, policies and files.
Integer programs take these, and ``Format.parse`` reads no others:

| text        | codes                       | real value                            |
|-------------|-----------------------------|---------------------------------------|
| ``int4``    | -7 .. 7 (restricted range)  | scale * q                             |
| ``uint4``   | 0 .. 15                     | scale * (q - zero_point)              |
| ``float32`` | -                           | itself: the tensor is not quantized   |

and for weights ``int4:tensor``, one scale for the layer, where plain ``int4`` has one for each output channel, and those
that are stored in other codes than they are computed with (``computed_as``):

| text                     | stored                                       | computed with                               |
|--------------------------|----------------------------------------------|---------------------------------------------|
| ``kmeans1``..``kmeans8`` | indices into a codebook of 2**b int8         | ``int8:tensor`` codes, those of the book    |
| ``binary``               | signs                                        | ``int2`` codes -1 and 1                     |
| ``ternary``              | two bits                                     | ``int2`` codes -1, 0 and 1                  |
| ``int4:group=16``        | codes -7 .. 7, a scale by 16                 | ``int8`` codes: code * step, steps 1 .. 18  |
| ``vsq4``                 | codes -7 .. 7, a 4-bit step by 16            | ``int8`` codes: code * step, steps 1 .. 15  |
| ``mx4``, ``mx6``         | codes of 3 or 5 bits, exponents by 2 and 16  | likewise, steps 1 .. 32 or 1 .. 8, powers   |
| ``mxfp4``, ``mxfp6``     | small floats, an exponent by 32              | likewise, steps 1 .. 8 or 1, 2, powers      |

The last four families share by blocks what programs can only have by channel, so a block has a *step*, and a weight is
level * step * the channel's float32 scale. Level * step is an int8 code, exactly: no block is finer than a 127th of its
channel's largest value, and what is stored is a tensor of that format in every case (``quant/steps.py``). The more bits a level
has the fewer steps fit: ``int2`` .. ``int7:group=N`` have 127 // code_max of them, and ``int8:group=N``, ``mx9`` and ``mxint8``
one, so that they are no better than ``int8``. Of the elements of ``mxfp8`` those are used that are multiples of 4 (to 448).

Integer weights are symmetric, so their range drops the lowest code (-8 for ``int4``): the range is the same on both
sides and zero needs no zero point [Jacob et al. 2018, 1712.05877, section 3].

Tensors can be kept in a few more (``haqsearch.quant.encode``); ``Format.of`` reads every one, and ``KINDS`` lists them:

| text                                | what is shared, by how many elements                                 |
|-------------------------------------|----------------------------------------------------------------------|
| ``int4:tensor``, ``uint4``          | a scale (``uint``: and a zero point) by the tensor                   |
| ``int4``, ``uint4:channel``         | by the channel, an index of the first dimension                      |
| ``int4:group=16``                   | by 16 neighbours of one channel; its last group may be shorter       |
| ``vsq4``                            | a 4-bit integer scale by 16, a float32 scale by the channel          |
| ``mx4 mx6 mx9``                     | a 1-bit exponent by 2, an 8-bit exponent by 16                       |
| ``mxfp4 mxfp6 mxfp8 mxint8``        | an 8-bit exponent by 32                                              |
| ``kmeans1`` .. ``kmeans8``          | a codebook of float32 by the tensor                                  |
| ``binary``, ``ternary``             | a float32 scale by the channel                                       |
| ``float16``, ``bfloat16``           | nothing                                                              |

``int4:channel`` is ``int4`` and ``uint4:tensor`` is ``uint4``, written out: what is usual for weights and activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from haqsearch.errors import PolicyError

MAX_WIDTH = 16  # bits; wider codes would not leave room for an int32 accumulator
SCALE_BITS = 32  # a scale is stored as float32
_PROGRAM_WIDTHS = range(2, 9)  # bits that recipes take
_SUFFIX = r":(tensor|channel)|:group=([1-9]\d{0,8})"


@dataclass(frozen=True)
class Kind:
    """A family of formats: its ``widths``, and what it is in a few words.

    ``shared``: (bits, elements of a channel that share them), those of groups (``:group=N``) aside; ``within``: how many bits
    of the width they are, where the name counts them.
    """

    widths: tuple[int, ...]
    summary: str
    shared: tuple[tuple[int, int], ...] = ()
    within: int = 0


# The number in a text form is the width; ``binary`` and ``ternary`` have none.
KINDS: Mapping[str, Kind] = {
    "int": Kind(tuple(range(1, 17)), "symmetric integers; by channel, :tensor, :group=N"),
    "uint": Kind(tuple(range(1, 17)), "integers with a zero point; by tensor, :channel, :group=N"),
    "vsq": Kind((4,), "two levels of scales, integers by 16 elements (VS-Quant)", ((4, 16),)),
    "mx": Kind((4, 6, 9), "shared micro-exponents, blocks of 2 and 16", ((1, 2), (8, 16)), 1),
    "mxfp": Kind((4, 6, 8), "OCP microscaling floats E2M1, E2M3, E4M3, blocks of 32", ((8, 32),)),
    "mxint": Kind((8,), "OCP microscaling integers, blocks of 32", ((8, 32),)),
    "kmeans": Kind(tuple(range(1, 9)), "a codebook found by k-means"),
    "binary": Kind((1,), "sign times the channel's mean magnitude (BWN)"),
    "ternary": Kind((2,), "-1, 0, 1 times a scale by channel (TWN)"),
    "float": Kind((16, 32), "IEEE 754 half and single precision"),
    "bfloat": Kind((16,), "the upper half of a float32"),
}
USUAL = {"int": "channel", "uint": "tensor"}
"""What shares a scale where the text form does not say."""
_WITHOUT_NUMBER = {"binary", "ternary"}


@dataclass(frozen=True, order=True)
class Format:
    """A number format: a ``kind`` of ``KINDS`` and its ``width``, the number in its text form.

    For ``int`` and ``uint``, where the width is that of one code in bits, ``granularity`` says what shares a scale:
    ``tensor``, ``channel``, ``group`` (of ``group`` elements), or empty for what is usual.
    """

    kind: str
    width: int
    granularity: str = ""
    group: int = 0

    def __post_init__(self) -> None:
        if self.granularity and self.granularity == USUAL.get(self.kind):
            object.__setattr__(self, "granularity", "")  # one meaning, one value

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """What is stored, as (bits, elements of a channel that share them): codes, then scales, steps and exponents.

        What a tensor or a channel has once (a scale, a codebook) is not there: it does not grow with their elements.
        """
        kind = KINDS[self.kind]
        group = [(SCALE_BITS, self.group), (self.width, self.group)][: 2 if self.kind == "uint" else 1]
        return ((self.width - kind.within, 1), *kind.shared, *(group if self.group else []))

    @property
    def bits(self) -> float:
        """Effective storage in bits per element: all ``parts``."""
        return float(sum(bits / elements for bits, elements in self.parts))

    def nbytes(self, rows: int, length: int) -> int:
        """Bytes of all ``parts`` of ``rows`` channels of ``length`` elements, each part packed into whole bytes."""
        return sum(-(-rows * -(-length // elements) * bits // 8) for bits, elements in self.parts)

    @property
    def is_float(self) -> bool:
        """Whether the tensor stays as it is, in float32."""
        return self.kind == "float" and self.width == 32

    @property
    def in_programs(self) -> bool:
        """Whether integer programs, and so policies and recipes, know this format."""
        if self.kind == "int":
            return 1 < self.width <= (8 if self.granularity == "group" else MAX_WIDTH)
        return self.is_float or self.is_decoded or (self.kind == "uint" and not self.granularity)

    @property
    def is_decoded(self) -> bool:
        """Whether programs compute with other codes than are stored: a codebook's, or those of ``has_steps``. Weights only."""
        return self.computed_as is not self

    @property
    def has_steps(self) -> bool:
        """Whether blocks of a channel share a scale or exponent, which programs hold as an integer step."""
        return bool(KINDS[self.kind].shared) or (self.kind == "int" and self.granularity == "group")

    @property
    def computed_as(self) -> Format:
        """Format of the integers that programs compute with, and that a device is asked about; itself but for weights that
        are decoded first.
        """
        return INT8 if self.has_steps else _COMPUTED_AS.get(self.kind, self)

    @property
    def uses(self) -> tuple[str, ...]:
        """Where it can be used: ``weights`` and ``activations`` of a network's policy, ``tensors`` (every format).

        Activations may be ``intN``, zero in the middle of their range; of values behind ReLU that wastes half of the codes,
        so searches propose ``uintN``, which has a zero point for values of both signs.
        """
        if self.is_float:
            return ("weights", "activations", "tensors")
        if not self.in_programs or self.computed_as.width not in _PROGRAM_WIDTHS:
            return ("tensors",)
        if self.kind == "uint":
            return ("activations", "tensors")
        signed = ("activations",) if self.kind == "int" and not self.granularity else ()
        return ("weights", *signed, "tensors")

    @property
    def code_min(self) -> int:
        """Smallest code in integer programs. Raises PolicyError for a format that has none there."""
        largest = self.code_max
        return 0 if self.kind == "uint" else -largest

    @property
    def code_max(self) -> int:
        """Largest code in integer programs. Raises PolicyError for a format that has none there."""
        if self.is_float:
            raise PolicyError(f"format {self} has no integer codes: it is not quantized")
        if self.is_decoded and self.in_programs:
            return self.computed_as.code_max
        if self.kind not in {"int", "uint"} or self.granularity not in {"", "tensor"}:
            raise PolicyError(f"format {self} has no integer codes of its own: it is for tensors, not for programs")
        return 2**self.width - 1 if self.kind == "uint" else 2 ** (self.width - 1) - 1

    def __str__(self) -> str:
        suffix = f":group={self.group}" if self.granularity == "group" else self.granularity and f":{self.granularity}"
        return self.kind if self.kind in _WITHOUT_NUMBER else f"{self.kind}{self.width}{suffix}"

    @classmethod
    def parse(cls, text: str) -> Format:
        """Format of integer programs named by ``text``: ``int2``..``int16``, ``uint1``..``uint16``, ``float32``, and those of
        weights in the tables above, ``int8:tensor``, ``int4:group=16``, ``vsq4`` ...

        Raises PolicyError with the nearest names for any other text, and for a format that is for tensors alone.
        """
        format = _read(text)
        if format and format.in_programs:
            return format
        known = [name for name, format in NAMES.items() if format.in_programs]
        if format is None:
            raise _unknown(text, known)
        if format.granularity:
            known = [f"{format.kind}{max(format.width, 2)}"]
        raise _unknown(
            text, known, f" in programs, policies and recipes: they take {TAKEN}, {format} is for tensors alone"
        )

    @classmethod
    def of(cls, text: str) -> Format:
        """Any format, as named by ``text``: those of ``KINDS``. Raises PolicyError with the nearest names otherwise."""
        format = _read(text)
        if format is None:
            raise _unknown(text, [*NAMES, *_GRANULAR])
        return format


def _read(text: str) -> Format | None:
    if not isinstance(text, str):
        return None
    text = text.strip()
    if match := re.fullmatch(rf"(u?int)([1-9]\d?)(?:{_SUFFIX})", text, re.ASCII):
        width, granularity, group = int(match[2]), match[3] or "group", int(match[4] or 0)
        return Format(match[1], width, granularity, group) if width <= MAX_WIDTH else None
    if match := re.fullmatch(r"(int|uint|float)(\d{1,3})", text):  # as in int08
        text = f"{match[1]}{int(match[2])}"
    return NAMES.get(text)


def _unknown(text: str, known: list[str], why: str = "") -> PolicyError:
    near = get_close_matches(str(text).lower(), known, n=3, cutoff=0.4) or ["int8", "uint8", "float32"]
    return PolicyError(f"unknown number format {text!r}{why}; did you mean {', '.join(near)}?")


FLOAT32 = Format("float", 32)
INT8 = Format("int", 8)
_COMPUTED_AS = {
    "kmeans": Format("int", 8, "tensor"),
    "binary": Format("int", 2),
    "ternary": Format("int", 2),
}
NAMES: Mapping[str, Format] = {
    str(format): format for kind, family in KINDS.items() for format in (Format(kind, w) for w in family.widths)
}
_GRANULAR = [f"{name}{suffix}" for name, format in NAMES.items() if format.kind in {"int", "uint"}
             for suffix in (":tensor", ":channel", ":group=16")]  # fmt: skip
WEIGHTS = "int2..int8 (also :tensor, :group=N), vsq4, mx4 mx6 mx9, mxfp4 mxfp6 mxfp8, mxint8, kmeans1..kmeans8, binary, ternary"
"""Text forms that weights of a searched network can have, in words; float32 aside."""
TAKEN = f"uint1..uint16, int2..int16, float32, and for weights {WEIGHTS}"
