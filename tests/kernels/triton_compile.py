"""Compile every Triton kernel for GPUs that need not be there, as calls of the operators would: python -m tests.kernels.triton_compile

Prints a line of JSON each: kernel, capability, bits, wide, and what its PTX multiplies matrices with. With ``all``: every packing, and
tiles of 64 x 64 instead of 16 x 16.
"""

from __future__ import annotations

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from haqsearch.kernels import triton as backend
from haqsearch.kernels.triton import packing

POINTERS = {torch.uint8: "*u8", torch.int8: "*i8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}


def signature(value, path, constants):
    """Triton's type of an argument. As in a launch, a 1 is a constant."""
    if isinstance(value, tuple):
        return tuple(signature(item, (*path, i), constants) for i, item in enumerate(value))
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if value == 1:
        constants[path] = 1
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_only(kernel, grid, out, args, **constants):
    """In place of the launch."""
    ones: dict[tuple[int, ...], int] = {}
    types = {name: signature(value, (i,), ones) for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False))}
    types |= dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        source = ASTSource(kernel, types, {**constants, **ones})
        code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
        dots = sorted(set(re.findall(r"(w?g?mma)\.[\w:.]*s32\.s8\.s8", code["ptx"])))
        row = {"kernel": kernel.fn.__name__, "capability": capability, "products": dots, "cubin": len(code["cubin"])}
        print(json.dumps({**row, "bits": constants.get("BITS"), "wide": constants.get("WIDE")}), flush=True)


def main(everything: bool) -> None:
    backend._launch = compile_only
    channels = 64 if everything else 16
    x = torch.zeros((2, channels, 8, 8), dtype=torch.uint8)
    constant = torch.ones(channels, dtype=torch.int64)
    epilogue = (constant, constant, constant, 7, 0, 255, torch.uint8)
    pair, window = [1, 1], [3, 3]
    for bits in (8, 4, 2, 1) if everything else (4,):
        weight = torch.arange(2**bits).sub(2 ** (bits - 1)).repeat(channels * 9)[: channels * channels * 9].to(torch.int8)
        backend.conv2d(x, 13, weight.view(channels, channels, 3, 3), bits, pair, pair, pair, 1, 0, *epilogue)
    if everything:
        backend.linear(x[:, :, 0, 0], 1, torch.ones((channels, channels), dtype=torch.int8), 8, 0, *epilogue)
        packing.MAX_MAGNITUDE = 0
        backend.conv2d(x, 13, weight.clone().view(channels, channels, 3, 3), 1, pair, pair, pair, 1, 0, *epilogue)
    backend.conv2d(
        x, 13, torch.ones((channels, 1, 3, 3), dtype=torch.int8), 8, pair, pair, pair, channels, 0, *epilogue
    )
    backend.average_pool2d(x, 13, window, pair, pair, *epilogue)
    backend.max_pool2d(x, window, pair, pair, pair)
    backend.weighted_sum([x, x.to(torch.int16)], [3, 1], [2**40, 1], *epilogue)


if __name__ == "__main__":
    main("all" in sys.argv)
