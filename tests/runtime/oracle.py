"""What a program means, computed another way: real numbers in float64, from the scales alone.

Nothing here reads a multiplier, a shift or an offset. Every tensor is dequantized, the operation is done on reals, and the
result is divided by its scale and rounded half to even. Scales are chosen so that no value falls on a tie
(haqsearch/quant/ties.py), so the codes are to be equal, all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from haqsearch.graph.execute import fill, resolve
from haqsearch.runtime import IntegerProgram


def oracle_codes(program: IntegerProgram, x: torch.Tensor) -> torch.Tensor:
    """Codes (float64) of every sample's output; of a program that ends in float, its values."""
    values = {program.input: x}
    for step in program.instructions:
        infos = [program.tensors[name] for name in step.inputs]
        outputs = [program.tensors[name] for name in step.outputs]
        codes = [values[name] for name in step.inputs]
        reals = [
            value if info.format.is_float else (value.double() - info.zero_point) * info.scale
            for value, info in zip(codes, infos, strict=True)
        ]
        at = step.attributes
        if step.op in {"conv2d", "linear"}:
            scale = program.constants[f"{step.name}.weight_scale"].double()
            weight = program.constants[f"{step.name}.weight"].double()
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = program.constants[f"{step.name}.bias"].double() * scale * infos[0].scale
        match step.op:
            case "quantize":
                # float32, as every backend does it: the input is no multiple of anything
                real = torch.round(reals[0].float() / torch.tensor(outputs[0].scale))
                info = outputs[0]
                values[info.name] = (real.double() + info.zero_point).clamp(info.low, info.high)
                continue
            case "dequantize":
                values[outputs[0].name] = reals[0].float()
                continue
            case "float":
                named = dict(zip(at["names"], reals, strict=True))
                keywords = {key: fill(value, named, program.constants) for key, value in at["keywords"].items()}
                result = resolve(at["target"])(*fill(at["arguments"], named, program.constants), **keywords)
                values[outputs[0].name] = result
                continue
            case "reshape":
                values[outputs[0].name] = codes[0].reshape(len(codes[0]), *outputs[0].shape)
                continue
            case "conv2d":
                real = F.conv2d(reals[0], weight, bias, at["stride"], at["padding"], at["dilation"], at["groups"])
            case "linear":
                real = reals[0] @ weight.T + bias
            case "avg_pool2d":
                real = F.avg_pool2d(reals[0], at["kernel"], at["stride"], at["padding"])
            case "max_pool2d":
                real = F.max_pool2d(reals[0], at["kernel"], at["stride"], at["padding"], at["dilation"])
            case "add":
                real = reals[0] + reals[1]
            case "concat":
                real = torch.cat(reals, at["dim"])
            case "rescale":
                real = reals[0]
            case "minimum":
                bound = (program.constants[f"{step.name}.high"].double() - infos[0].zero_point) * infos[0].scale
                real = torch.minimum(reals[0], bound.reshape(-1, *[1] * (reals[0].ndim - 2)))
            case "slice":
                index = [slice(None)] * reals[0].ndim
                index[at["dim"]] = slice(at["start"], at["end"], at["step"])
                real = reals[0][tuple(index)]
            case "pad":
                real = F.pad(reals[0], at["amounts"])
            case _:
                raise AssertionError(step.op)
        for info in outputs:
            rounded = torch.round(real / info.scale) + info.zero_point
            values[info.name] = rounded.clamp(info.low, info.high)
    return values[program.output]
