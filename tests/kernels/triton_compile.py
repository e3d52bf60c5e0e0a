"""Compile the Triton kernels as calls of the operators would, for GPUs that need not be there.

``python -m tests.kernels.triton_compile`` prints a line of JSON a kernel: the compute capability, and what multiplies matrices in
its PTX. With ``all``: every packing, tiles of 64 x 64, and capability 9.0 besides 8.0.
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
    types = {
        name: signature(value, (i,), ones) for i, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False))
    }
    types |= dict.fromkeys(constants, "constexpr")
    for capability in (80, 90) if "all" in sys.argv else (80,):
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
    ones, three = [1, 1], [3, 3]

    def convolve(bits, groups=1):
        weight = torch.arange(channels * channels // groups * 9) % 2**bits - 2 ** (bits - 1)
        weight = weight.to(torch.int8).view(channels, -1, 3, 3)
        backend.conv2d(x, 13, weight, bits, ones, ones, ones, groups, 0, *epilogue)

    for bits in (8, 4, 2, 1) if everything else (4,):
        convolve(bits)
    if everything:  # a linear layer's window is ones: constants to the compiler
        backend.linear(x[:, :, 0, 0], 1, torch.ones((channels, channels), dtype=torch.int8), 8, 0, *epilogue)
        packing.MAX_MAGNITUDE = 0
        convolve(8)
    convolve(8, groups=channels)
    backend.average_pool2d(x, 13, three, ones, ones, *epilogue)
    backend.max_pool2d(x, three, ones, ones, ones)
    backend.weighted_sum([x, x.to(torch.int16)], [3, 1], [2**40, 1], *epilogue)


if __name__ == "__main__":
    main("all" in sys.argv)
