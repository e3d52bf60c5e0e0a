"""Sensitivities that are calculated: no policy is evaluated for them. One a file.

To add one: a file with a subclass of ``Measure``, and a line in ``MEASURES``. A measure outside this package is named by
``my_module:MyMeasure``. Importing this package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haqsearch.evaluate.measures.base import Measure

MEASURES: dict[str, str] = {
    "output_mse": "haqsearch.evaluate.measures.output_mse:OutputMse",
    "hessian": "haqsearch.evaluate.measures.hessian:Hessian",
}


def measure_called(name: str) -> type[Measure]:
    """The measure of that name; KeyError if there is none."""
    module, _, attribute = MEASURES[name].partition(":")
    found: Any = getattr(import_module(module), attribute)
    return found
