"""HAQ's strategies [Wang et al. 2019; github.com/mit-han-lab/haq, README.md, finetune.py]: a list, one entry a layer.

    strategy = [6, 6, 5, 5, ...]                  k-means: bits of each layer's weights; activations in float
    strategy = [[8, -1], [7, 7], [5, 6], ...]     linear: bits of weights and of the input; -1: the image, 8 bits

Entries are for the convolutions and linear layers in order. HAQ counts them as its modules are defined, here they are as
executed; these agree for networks whose modules are defined as they are used.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from haqsearch.errors import PolicyError
from haqsearch.importers.layers import EIGHT, Imported, assembled, bits_of, by_order, integer, listed
from haqsearch.spec import Format, ModelSpec

_IMAGE = -1
_LARGEST_BOOK = 8  # bits


def read(text: str, model: ModelSpec, where: str) -> Imported:
    """The policy of a strategy: a Python or JSON list, with or without ``strategy =`` before it. Raises PolicyError."""
    found = by_order(_strategy(text, where), listed(model), where)
    places = {name: f"{where}: layer {name!r}" for name in found}
    if not any(isinstance(entry, list | tuple) for entry in found.values()):
        weights = {name: _codebook(entry, places[name]) for name, entry in found.items()}
        note = "activations have 8 bits here, where HAQ's k-means environment leaves them in float"
        return assembled(weights, {}, model, where, [note])
    weights, activations = {}, {}
    for name, entry in found.items():
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise PolicyError(f"{places[name]}: {entry!r} is no pair of bits, as the others are: [weights, input]")
        weights[name] = integer(entry[0], places[name])
        activations[name] = EIGHT if entry[1] == _IMAGE else integer(entry[1], places[name], "uint")
    return assembled(weights, activations, model, where)


def _strategy(text: str, where: str) -> list[Any]:
    bare = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    match = re.search(r"\[.*\]", bare, re.DOTALL)
    try:
        strategy = ast.literal_eval(match[0]) if match else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        strategy = None
    if not isinstance(strategy, list) or not strategy:
        raise PolicyError(f"{where}: no list like [6, 6, 5] or [[8, -1], [7, 7]], which HAQ's strategies are")
    return strategy


def _codebook(value: object, where: str) -> Format:
    if (bits := bits_of(value, where)) > _LARGEST_BOOK:
        raise PolicyError(f"{where}: {bits} bits; codebooks of k-means have 1 to {_LARGEST_BOOK}")
    return Format("kmeans", bits)
