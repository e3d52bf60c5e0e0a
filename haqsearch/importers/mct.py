"""Sony's Model Compression Toolkit: bits of each layer, as its mixed-precision search gives them.

Any of these, found by what the file is:

    Final weights bit-width configuration: [8, 4, 2, ...]          its log; one width a layer, in order
    {"conv1": 8, "layer1_0_conv1_bn": 4}                           by name, as its graph names layers
    {"mixed_precision_cfg": [0, 2, 1], "candidates": [8, 4, 2]}    UserInformation's indices, with what they are indices of

Its graph's names are module names with ``_`` for ``.``, and ``_bn`` behind a convolution into which a norm was folded. A
candidate is a width of weights, or a pair with the activations' (``[[8, 8], [4, 8]]``). MCT's activation widths belong to what
a layer gives; as inputs they are 8 bits here, and a note says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from haqsearch.errors import PolicyError
from haqsearch.importers.layers import Imported, assembled, by_order, integer, listed, some
from haqsearch.spec import ModelSpec

_LOG = re.compile(r"Final (weights|activation) bit-width configuration:\s*(\[[^\]]*\])")


def read(text: str, model: ModelSpec, where: str) -> Imported:
    """The policy of any of the forms above. Raises PolicyError for another, and for layers that do not fit."""
    if logged := dict(_LOG.findall(text)):
        if "weights" not in logged:
            raise PolicyError(f"{where}: a log without 'Final weights bit-width configuration'")
        return _policy(
            by_order(_list(logged["weights"], where), listed(model), where), model, where, "activation" in logged
        )
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    match content:
        case {"mixed_precision_cfg": list(indices), "candidates": list(candidates)}:
            return _of_indices(indices, candidates, model, where)
        case {"mixed_precision_cfg": _}:
            raise PolicyError(
                f"{where}: mixed_precision_cfg holds indices; add what they are indices of: "
                '"candidates": [8, 4, 2], or [[8, 8], [4, 8]] with activations'
            )
        case dict() if content:
            return _policy(_by_name(content, model, where), model, where, False)
        case list() if content:
            return _policy(by_order(content, listed(model), where), model, where, False)
    raise PolicyError(f'{where}: neither MCT\'s log, nor JSON like {{"conv1": 8}} or {{"mixed_precision_cfg": [...]}}')


def _policy(widths: Mapping[str, object], model: ModelSpec, where: str, mixed_activations: bool) -> Imported:
    weights = {name: integer(w, f"{where}: layer {name!r}") for name, w in widths.items()}
    notes = ["activations have 8 bits: MCT's widths are of what layers give, not of what they read"]
    return assembled(weights, {}, model, where, notes if mixed_activations else [])


def _of_indices(indices: Sequence[Any], candidates: Sequence[Any], model: ModelSpec, where: str) -> Imported:
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(candidates):
            raise PolicyError(f"{where}: {index!r} is no index of the {len(candidates)} candidates")
    chosen = [candidates[index] for index in indices]
    pairs = any(isinstance(one, list) for one in chosen)
    widths = [one[0] if isinstance(one, list) and one else one for one in chosen]
    return _policy(by_order(widths, listed(model), where), model, where, pairs)


def _by_name(content: Mapping[str, object], model: ModelSpec, where: str) -> dict[str, object]:
    layers = {layer.name.replace(".", "_"): layer.name for layer in listed(model)}
    found, unknown = {}, []
    for name, width in content.items():
        plain = name.replace(".", "_")
        known = layers.get(plain) or layers.get(plain.removesuffix("_bn"))
        if known:
            found[known] = width
        else:
            unknown.append(name)
    missing = [name for name in layers.values() if name not in found]
    if unknown or missing:
        parts = [f"{model.name} has no layer {some(unknown)}"] * bool(unknown)
        parts += [f"nothing is said of {some(missing)}"] * bool(missing)
        raise PolicyError(f"{where}: {'; '.join(parts)}")
    return found


def _list(text: str, where: str) -> list[Any]:
    try:
        return list(json.loads(text))
    except json.JSONDecodeError:
        raise PolicyError(f"{where}: {text[:40]!r} is no list of widths") from None
