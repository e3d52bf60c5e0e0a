"""A tensor in any number format: codes, parameters, and the bytes they take.

q = encode(weight, "int3:group=32")
q.dequantize(), q.nbytes, q.pack()
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from haqsearch.errors import DataError, PolicyError
from haqsearch.quant.families import FAMILIES, Field
from haqsearch.quant.packing import pack_bits, unpack_bits
from haqsearch.spec import Format

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class QTensor:
    """``codes`` (int32, the tensor's shape) and ``parameters`` (scales, exponents, codebook: see the format's family).

    Channels are the indices of the first dimension; a tensor of fewer than two dimensions is one channel. The elements of a
    channel follow each other in memory's order, and so do the groups they are cut into.
    """

    format: Format
    codes: Tensor
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout = _layout(self.format, self.shape)
        found = {name: tuple(part.shape) for name, part in self.parameters.items()}
        wanted = {name: part.shape for name, part in layout.items() if name != "codes"}
        if found != wanted:
            raise DataError(f"a tensor {_text(self.shape)} in {self.format} has the parameters {wanted}, not {found}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of ``pack()``."""
        return sum(part.nbytes for part in _layout(self.format, self.shape).values())

    def dequantize(self) -> Tensor:
        """Real values (float32), the tensor's shape."""
        parts = {"codes": self.codes.reshape(_rows(self.shape)), **self.parameters}
        limit = torch.finfo(torch.float32).max  # a scale rounded up may carry the largest value beyond it
        return FAMILIES[self.format.kind].decode(parts, self.format).clamp_(-limit, limit).float().reshape(self.shape)

    def pack(self) -> dict[str, Tensor]:
        """The parts as they are stored: integers dense (``packing``) in uint8, reals in float32."""
        parts = {"codes": self.codes, **self.parameters}
        return {
            name: pack_bits(parts[name].long() - place.low, place.width) if place.width else parts[name].contiguous()
            for name, place in _layout(self.format, self.shape).items()
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor], format: Format, shape: tuple[int, ...]) -> QTensor:
        """Inverse of ``pack``. Raises DataError if a part is missing, of another size, or holds NaN or infinity."""
        layout = _layout(format, shape)
        if packed.keys() != layout.keys():
            raise DataError(
                f"a tensor in {format} is stored as {', '.join(layout)}, not {', '.join(packed) or 'nothing'}"
            )
        parts = {name: _unpacked(name, packed[name], place, format) for name, place in layout.items()}
        return cls(format, parts.pop("codes").reshape(shape), parts)


def encode(x: Tensor, format: Format | str) -> QTensor:
    """``x`` (any shape, read as float32) in ``format``, a Format or its text form; README.md has the meaning of each.

    Where a format has a range, it is that of the values: nothing is clipped. A group that does not divide a channel leaves a
    shorter one at its end. Constant tensors, and channels and groups of zeros, are exact in every format that holds zero.
    Raises PolicyError for an unknown format, DataError for a tensor that is empty, complex, or holds NaN or infinity.
    """
    format = Format.of(str(format))  # a Format made by hand may be none
    shape = tuple(x.shape)
    if not x.numel():
        raise DataError(f"cannot quantize an empty tensor {_text(shape)}: it has no range")
    if x.is_complex():
        raise DataError(f"cannot quantize complex numbers ({x.dtype})")
    real = x.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(real).all()):
        raise DataError(f"cannot quantize a tensor {_text(shape)} that holds NaN or infinity as float32")
    parts = FAMILIES[format.kind].encode(real.double().reshape(_rows(shape)), format)
    return QTensor(format, parts.pop("codes").reshape(shape), parts)


def packed_state(tensors: Mapping[str, QTensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(Tensors, metadata) of ``tensors`` for safetensors' ``save_file``: NAME.PART, and format and shape in the metadata."""
    state = {f"{name}.{part}": value for name, q in tensors.items() for part, value in q.pack().items()}
    about = {name: {"format": str(q.format), "shape": q.shape} for name, q in tensors.items()}
    return state, {"haqsearch_tensors": json.dumps({"schema_version": SCHEMA_VERSION, "tensors": about})}


def from_packed_state(
    state: Mapping[str, Tensor], metadata: Mapping[str, str] | None, where: str = "state"
) -> dict[str, QTensor]:
    """Inverse of ``packed_state``; other tensors in ``state`` are left alone. Raises DataError naming ``where``."""
    try:
        content = json.loads((metadata or {})["haqsearch_tensors"])
        version, about = content["schema_version"], dict(content["tensors"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where}: holds no quantized tensors: the metadata lack haqsearch_tensors") from None
    if version != SCHEMA_VERSION:
        raise DataError(f"{where}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
    found = {}
    for name, entry in about.items():
        try:
            format, shape = Format.of(entry["format"]), tuple(entry["shape"])
            if not all(isinstance(size, int) and size > 0 for size in shape):
                raise DataError(f"the shape {list(shape)} is none")
            packed = {part: state[f"{name}.{part}"] for part in _layout(format, shape)}
            found[name] = QTensor.unpack(packed, format, shape)
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: tensor {name!r}: missing or malformed: {error}") from None
        except (DataError, PolicyError) as error:
            raise DataError(f"{where}: tensor {name!r}: {error}") from None
    return found


def _unpacked(name: str, packed: Tensor, place: Field, format: Format) -> Tensor:
    if place.width:
        return (unpack_bits(packed, place.width, place.count) + place.low).to(torch.int32).reshape(place.shape)
    if packed.dtype != torch.float32 or tuple(packed.shape) != place.shape or not bool(torch.isfinite(packed).all()):
        raise DataError(f"{name} of a tensor in {format} is float32 {_text(place.shape)}, finite")
    return packed


def _layout(format: Format, shape: tuple[int, ...]) -> dict[str, Field]:
    return FAMILIES[format.kind].layout(format, *_rows(shape))


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """(Channels, elements of one)."""
    rows = shape[0] if len(shape) >= 2 else 1
    return rows, prod(shape) // rows


def _text(shape: tuple[int, ...]) -> str:
    return f"of shape {list(shape)}"
