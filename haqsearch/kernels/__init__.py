"""Integer kernels. ``reference`` is the oracle: plain torch, exact by construction; every other backend must equal it.

A backend is a module with the functions of ``reference``: ``conv2d``, ``linear``, ``window_sum``, ``weighted_sum``,
``max_pool2d`` and ``epilogue``.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from haqsearch.errors import ModelError

BACKENDS = {
    "reference": "haqsearch.kernels.reference",
}


def get_backend(name: str = "reference") -> ModuleType:
    """The backend called ``name``; ModelError names the known ones otherwise."""
    if name not in BACKENDS:
        raise ModelError(f"no kernel backend {name!r}; known: {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])
