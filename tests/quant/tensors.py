"""Every number format, and tensors to try it on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from haqsearch.spec import Format
from haqsearch.spec.formats import NAMES

GROUPED = [
    "int4:tensor",
    "int3:channel",
    "uint5:channel",
    "int2:group=16",
    "uint3:group=5",
    "int1:group=1",
    "uint16:group=7",
]
EVERY = [*NAMES.values(), *map(Format.of, GROUPED)]
every = st.sampled_from(EVERY)
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(), (1,), (37,), (1, 1), (3, 7), (2, 33), (4, 3, 3, 3), (5, 1, 48)])
widths = st.integers(1, 16)
suffixes = st.sampled_from(["", ":tensor", ":channel", ":group=1", ":group=5", ":group=16"])


def tensor(shape, seed):
    """Values of very different sizes, some of them zero."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * torch.exp2(torch.randint(-6, 6, shape, generator=g))
    return x * (torch.rand(shape, generator=g) < 0.9)


def same(a, b):
    return (
        a.format == b.format
        and torch.equal(a.codes, b.codes)
        and a.parameters.keys() == b.parameters.keys()
        and all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)
    )
