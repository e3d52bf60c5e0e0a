"""Integer kernels. ``reference`` is the oracle: plain torch, exact by construction; every other backend must equal it.

schema      the operators, as ``torch.library`` knows them; a backend is a module with functions of their names
reference   plain torch
native      C++ with SIMD, chosen by what the CPU has (see native/); built when the package is installed
triton      CUDA
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

from haqsearch.errors import ModelError

BACKENDS = {
    "reference": "haqsearch.kernels.reference",
    "native": "haqsearch.kernels.native",
    "triton": "haqsearch.kernels.triton",
}


def get_backend(name: str = "reference") -> ModuleType:
    """The backend called ``name``; ModelError names the known ones otherwise, or says what this one lacks here."""
    if name not in BACKENDS:
        raise ModelError(f"no kernel backend {name!r}; known: {', '.join(BACKENDS)}")
    try:
        return import_module(BACKENDS[name])
    except ImportError as error:
        raise ModelError(f"the kernel backend {name!r} cannot be loaded here ({error})") from error


@cache
def best_backend(device: str = "cpu") -> str:
    """Name of the fastest backend this installation has for ``device`` (cpu or cuda)."""
    if device != "cpu":
        return "triton"
    try:
        get_backend("native")
    except ModelError:
        warnings.warn(
            "haqsearch's native kernels are not built: everything runs on the slow reference. Install a C++17 compiler and "
            "run `pip install --force-reinstall --no-deps haqsearch` (in a checkout: `pip install -e .`)",
            stacklevel=2,
        )
        return "reference"
    return "native"
