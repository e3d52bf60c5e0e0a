"""haqsearch: per-layer bit-widths for a trained network, under a device's budget.

Names are loaded on first use (PEP 562): importing this package loads no torch, ray, optuna or onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Budget": "haqsearch.spec",
    "Choice": "haqsearch.spec",
    "Evaluation": "haqsearch.spec",
    "Format": "haqsearch.spec",
    "HaqError": "haqsearch.errors",
    "ModelSpec": "haqsearch.spec",
    "Policy": "haqsearch.spec",
    "SearchSpace": "haqsearch.spec",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'haqsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
