"""Cost models of devices: layers as shapes in, latency, energy and size out. Never imports torch.

Names are loaded on first use (PEP 562): importing this package loads neither numpy nor pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "CostTable": "hwmodels.base",
    "HardwareModel": "hwmodels.base",
    "LayerCost": "hwmodels.base",
    "Holder": "hwmodels.meter",
    "Least": "hwmodels.meter",
    "Meter": "hwmodels.meter",
    "list_profiles": "hwmodels.profile",
    "load": "hwmodels.profile",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hwmodels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
