"""Number formats as values.

A format is what a bit-width *means*. Its text form is usable wherever a width is: in recipes, policies and files.

| text        | codes                       | real value                            |
|-------------|-----------------------------|---------------------------------------|
| ``int4``    | -7 .. 7 (restricted range)  | scale * q                             |
| ``uint4``   | 0 .. 15                     | scale * (q - zero_point)              |
| ``float32`` | -                           | itself: the tensor is not quantized   |

Integer weights are symmetric, so their range drops the lowest code (-8 for ``int4``): the range is the same on both
sides and zero needs no zero point [Jacob et al. 2018, 1712.05877, section 3].
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from haqsearch.errors import PolicyError

MAX_WIDTH = 16  # bits; wider codes would not leave room for an int32 accumulator


@dataclass(frozen=True, order=True)
class Format:
    """A number format: ``kind`` is ``int``, ``uint`` or ``float``; ``width`` is the width of one code in bits."""

    kind: str
    width: int

    @property
    def bits(self) -> float:
        """Effective storage in bits per element, overheads that grow with the elements included."""
        return float(self.width)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def code_min(self) -> int:
        """Smallest code. Raises PolicyError for a float format, which has no codes."""
        return 0 if self.kind == "uint" else -self.code_max

    @property
    def code_max(self) -> int:
        """Largest code. Raises PolicyError for a float format, which has no codes."""
        if self.is_float:
            raise PolicyError(f"format {self} has no integer codes: it is not quantized")
        return 2**self.width - 1 if self.kind == "uint" else 2 ** (self.width - 1) - 1

    def __str__(self) -> str:
        return f"{self.kind}{self.width}"

    @classmethod
    def parse(cls, text: str) -> Format:
        """Format named by ``text`` (``int2``..``int16``, ``uint1``..``uint16``, ``float32``); PolicyError otherwise."""
        match = re.fullmatch(r"(int|uint|float)(\d{1,3})", text.strip()) if isinstance(text, str) else None
        if match:
            kind, width = match[1], int(match[2])
            lowest = {"int": 2, "uint": 1, "float": 32}[kind]
            highest = 32 if kind == "float" else MAX_WIDTH
            if lowest <= width <= highest:
                return cls(kind, width)
        known = [f"int{b}" for b in range(2, MAX_WIDTH + 1)] + [f"uint{b}" for b in range(1, MAX_WIDTH + 1)]
        near = get_close_matches(str(text).lower(), [*known, "float32"], n=3, cutoff=0.4) or [
            "int8",
            "uint8",
            "float32",
        ]
        raise PolicyError(f"unknown number format {text!r}; did you mean {', '.join(near)}?")


FLOAT32 = Format("float", 32)
