"""IntegerProgram: the deployed network as data.

Operations, with their attributes and constants (constants are keyed ``NAME.kind``):

  op          inputs   outputs        attributes                                constants
  quantize    float    codes          -                                         -
  conv2d      codes    codes, ...     stride padding dilation groups bound      NAME.weight int8, .weight_scale, .bias int32
  linear      codes    codes, ...     bound                                     likewise
  avg_pool2d  codes    codes, ...     kernel stride padding                     -
  add         codes*   codes, ...     multipliers: per output, per input        -
  rescale     codes    codes, ...     -                                         -
  concat      codes*   codes          dim; one multiplier set per input         -
  max_pool2d  codes    codes          kernel stride padding dilation            -
  minimum     codes    codes          -                                         NAME.high int64 (C,): bounds by channel
  slice pad reshape   codes    codes  dim start end step / amounts / -          -
  dequantize  codes    float          -                                         -
  float       float*   float          target arguments keywords                 parameters by key

Every output of an arithmetic operation has its own epilogue: constants ``OUTPUT.multiplier``, ``OUTPUT.shift`` (int64, (1,)
or (N,)) and ``OUTPUT.offset`` (bias and rounding), and the clamp [low, high] of its TensorInfo. A value kept twice, as
residual stream and as the input of a narrower layer, is computed as the stream and rescaled to the narrower format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from haqsearch.errors import ModelError, PolicyError
from haqsearch.files import replacing
from haqsearch.quant import QParams
from haqsearch.spec import Format

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorInfo:
    """A value of the program: shape without the batch, format, real = scale * (q - zero_point), codes within [low, high]."""

    name: str
    shape: tuple[int, ...] | None
    format: Format
    scale: float = 1.0
    zero_point: int = 0
    low: int = 0
    high: int = 0

    @property
    def params(self) -> QParams:
        return QParams(self.format, self.scale, self.zero_point)

    @property
    def largest(self) -> int:
        """Largest |q - zero_point| of any code of this tensor."""
        return max(abs(self.low - self.zero_point), abs(self.high - self.zero_point))


@dataclass(frozen=True)
class Instruction:
    """One operation; ``layer`` is the dotted name where it has weights."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: str = ""
    weight_format: Format | None = None


@dataclass(frozen=True, eq=False)  # equal only to itself: it holds tensors
class IntegerProgram:
    """``instructions`` in order, every value's TensorInfo, constants by key; reads ``input``, gives ``output``."""

    name: str
    instructions: tuple[Instruction, ...]
    tensors: Mapping[str, TensorInfo]
    constants: Mapping[str, Tensor]
    input: str
    output: str

    @property
    def output_info(self) -> TensorInfo:
        return self.tensors[self.output]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all integer weights as stored, densely packed per layer: codes, steps and exponents of blocks, codebooks."""
        total = 0
        for instruction in self.instructions:
            format = instruction.weight_format
            if format is not None:
                weight = self.constants[f"{instruction.name}.weight"]
                total += format.nbytes(len(weight), weight[0].numel())
                total += 2**format.width if format.kind == "kmeans" else 0
        return total

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the operations, every value's format and scale, and every constant's bytes."""
        content = hashlib.sha256(json.dumps(_to_json(self), sort_keys=True, default=str).encode())
        for key in sorted(self.constants):
            tensor = self.constants[key].contiguous()
            content.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()[:16]


def save_program(program: IntegerProgram, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``program`` as one safetensors file: constants as tensors, the rest as JSON in its metadata. Atomic."""
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in program.constants.items()}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), {**(metadata or {}), "integer_program": json.dumps(_to_json(program))})


def load_program(path: Path) -> IntegerProgram:
    """Program written by ``save_program``, verified. Raises ModelError if the file is missing, damaged or something else."""
    from safetensors import SafetensorError, safe_open

    from haqsearch.runtime.verify import verify

    if not path.is_file():
        raise ModelError(f"no integer program at {path}; a finished run holds one as model.safetensors")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            constants = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error})") from error
    if "integer_program" not in metadata:
        raise ModelError(f"{path}: holds no integer program; expected the model.safetensors of a finished run")
    try:
        content = json.loads(metadata["integer_program"])
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ModelError(
                f"{path}: schema_version {content.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
            )
        program = _from_json(content, constants)
        verify(program)
    except (AttributeError, IndexError, KeyError, PolicyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its integer program is damaged ({type(error).__name__}: {error})") from error
    return program


def _to_json(program: IntegerProgram) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": program.name,
        "input": program.input,
        "output": program.output,
        "tensors": [{**asdict(info), "format": str(info.format)} for info in program.tensors.values()],
        "instructions": [
            {**asdict(i), "weight_format": str(i.weight_format) if i.weight_format else None}
            for i in program.instructions
        ],
    }


def _from_json(content: Any, constants: Mapping[str, Tensor]) -> IntegerProgram:
    tensors = {
        t["name"]: TensorInfo(
            **{**t, "format": Format.parse(t["format"]), "shape": None if t["shape"] is None else tuple(t["shape"])}
        )
        for t in content["tensors"]
    }
    instructions = tuple(
        Instruction(
            i["op"],
            i["name"],
            tuple(i["inputs"]),
            tuple(i["outputs"]),
            i["attributes"],
            i["layer"],
            Format.parse(i["weight_format"]) if i["weight_format"] else None,
        )
        for i in content["instructions"]
    )
    return IntegerProgram(content["name"], instructions, tensors, constants, content["input"], content["output"])
