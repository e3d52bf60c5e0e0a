"""OpenVINO's NNCF: ``bitwidth_per_scope``, pairs of bits and a place in its graph, as HAWQ and AutoQ wrote and took them.

    "bitwidth_per_scope": [
        [4, "MobileNetV2/Sequential[features]/InvertedResidual[10]/Sequential[conv]/NNCFConv2d[2]/conv2d_0|WEIGHT"],
        [8, "/nncf_model_input_0|OUTPUT"],
        [8, "MobileNetV2/Sequential[features]/ConvBNActivation[0]/ReLU6[2]/hardtanh_0|OUTPUT"],
    ]

in a configuration file (comments allowed), in ``bitwidth_per_scope.json``, or alone. The words in brackets are the module's
dotted name. Older versions wrote ``TargetType.OPERATION_WITH_WEIGHTS PLACE`` and ``.../UpdateWeight[0]/...Quantizer[op]``.
What is not named has the bits of the configuration's ``weights`` and ``activations``, or 8.

A weight's place is a layer. An activation's is the operation that gives the tensor; the layers that read it are found
through the layer that computes it: the operation is of the same module (``conv`` and its ``relu``), or, for the sum of a
residual block, of a module around it. Places that no layer reads - a summand of a residual add - have no format of their own
here: the residual stream has 8 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from haqsearch.errors import PolicyError
from haqsearch.importers.layers import Imported, assembled, bits_of, integer, listed, some
from haqsearch.spec import Format, ModelSpec

_INPUT = "nncf_model_input"


@dataclass(frozen=True)
class Place:
    """``module`` is dotted, ``op`` the operation in it (``conv2d_0``), ``direct`` whether the module is the operation."""

    scope: str
    weight: bool
    module: str
    op: str

    @property
    def direct(self) -> bool:
        """Whether the operation is a module itself (``ReLU6[2]/hardtanh_0``), not a call in one (``BasicBlock[0]/relu_0``)."""
        owner = self.scope.rpartition("/")[0].rpartition("/")[2].partition("[")[0]
        return owner.startswith(
            ("ReLU", "NNCFBatchNorm", "BatchNorm", "Hardswish", "Sigmoid", "AvgPool", "AdaptiveAvg")
        )

    @property
    def home(self) -> str:
        """The module in which layers have this operation beside them."""
        return self.module.rpartition(".")[0] if self.direct else self.module


def read(text: str, model: ModelSpec, where: str) -> Imported:
    """The policy of a configuration or of a list. Raises PolicyError for another form and for weights of no layer here."""
    content = _json(text, where)
    pairs, section = _find(content), content if isinstance(content, dict) else {}
    if pairs is None:
        raise PolicyError(f'{where}: no "bitwidth_per_scope": [[4, "SCOPE"], ...], which NNCF writes')
    defaults = [_default(section, role) for role in ("weights", "activations")]
    places = [(_place(scope, where), bits_of(bits, f"{where}: {scope}")) for bits, scope in _checked(pairs, where)]
    names = {layer.name for layer in listed(model)}
    lost = [place.module or place.scope for place, _ in places if place.weight and place.module not in names]
    if lost:
        raise PolicyError(f"{where}: {model.name} has no layer {some(lost)}; it was written for another network")
    bits = {place.module: width for place, width in places if place.weight}
    weights = {name: integer(bits.get(name, defaults[0]), f"{where}: layer {name!r}") for name in names}
    notes = (
        [f"{some(silent)}: weights of {defaults[0]} bits, the default"]
        if (silent := sorted(names - bits.keys()))
        else []
    )
    activations, unread = _activations({p: w for p, w in places if not p.weight}, model, defaults[1])
    if unread:
        notes.append(f"{len(unread)} places that no layer reads keep 8 bits, as the residual stream: {some(unread)}")
    return assembled(weights, activations, model, where, notes)


def _activations(places: Mapping[Place, int], model: ModelSpec, default: int) -> tuple[dict[str, Format], list[str]]:
    """Input formats by layer, and the scopes that were of no use."""
    given: dict[tuple[str, ...], Place | None] = {}  # by the layers that the tensor comes from
    # Sums last: what is beside a block's sum is first given to the layers inside. Each in network order.
    for inputs in sorted(dict.fromkeys(layer.inputs for layer in model.quantizable), key=len):
        given[inputs] = _given(inputs, [place for place in places if place not in given.values()])
    chosen = {layer.name: given[layer.inputs] for layer in model.quantizable}
    found = {name: Format("uint", places[place] if place else default) for name, place in chosen.items()}
    return found, [place.scope for place in places if place not in given.values()]


def _given(inputs: tuple[str, ...], places: Sequence[Place]) -> Place | None:
    """The place of the tensor that comes from the layers ``inputs``: one layer's result, or a sum."""
    if not inputs:
        return next((place for place in places if _INPUT in place.scope), None)
    home = inputs[-1].rpartition(".")[0]
    while True:
        here = [place for place in places if place.home == home and _INPUT not in place.scope]
        sums = [place for place in here if re.match(r"__i?add__", place.op)]
        alone = [place for place in here if place not in sums]
        calls = [place for place in alone if not place.direct]
        if len(inputs) == 1 and alone:
            return next((place for place in alone if place.direct and _follows(inputs[0], place)), alone[0])
        if len(inputs) > 1 and (calls or sums):
            return (calls or sums)[-1]  # a block's last call is what its sum goes through
        if not home:
            return None
        home = home.rpartition(".")[0]


def _follows(layer: str, place: Place) -> bool:
    """Whether the place's module is defined right behind the layer's: numbers one or two further."""
    first, second = layer.rpartition(".")[2], place.module.rpartition(".")[2]
    return first.isdigit() and second.isdigit() and 0 < int(second) - int(first) <= 2


def _place(scope: str, where: str) -> Place:
    path, weight = scope, "UpdateWeight" in scope
    if match := re.fullmatch(r"(.*)\|(WEIGHT|OUTPUT|INPUT\d*)", scope):
        path, weight = match[1], match[2] == "WEIGHT"
    elif match := re.fullmatch(r"TargetType\.(\w+) (.*)", scope):
        path, weight = match[2], "WEIGHTS" in match[1]
    elif weight:
        path = scope.partition("/ModuleDict[pre_ops]")[0]
    elif match := re.fullmatch(r"ModuleDict/\w+\[(.*)\]", scope):
        path = match[1]
    else:
        raise PolicyError(f"{where}: {scope!r} is no place in NNCF's graph: it ends with |WEIGHT or |OUTPUT")
    return Place(path, weight, ".".join(re.findall(r"\w+\[([^\]]*)\]", path)), path.rpartition("/")[2])


def _json(text: str, where: str) -> Any:
    """JSON with // comments and commas at the end of lists, as NNCF takes it."""
    bare = re.sub(r'("(?:[^"\\]|\\.)*")|//[^\n]*', lambda match: match[1] or "", text)
    try:
        return json.loads(re.sub(r",(\s*[\]}])", r"\1", bare))
    except json.JSONDecodeError as error:
        raise PolicyError(f"{where}: not valid JSON: {error}") from None


def _checked(pairs: Any, where: str) -> Iterator[tuple[object, str]]:
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], str):
            raise PolicyError(f"{where}: bitwidth_per_scope: {pair!r} is no pair of bits and a scope")
        yield pair[0], pair[1]


def _find(content: Any) -> Any:
    """``bitwidth_per_scope``, however deep it lies; a bare list is one."""
    if isinstance(content, list) and content and all(isinstance(x, list) for x in content):
        return content
    inner = content if isinstance(content, list) else content.values() if isinstance(content, dict) else ()
    if isinstance(content, dict) and "bitwidth_per_scope" in content:
        return content["bitwidth_per_scope"]
    return next((found for part in inner if (found := _find(part)) is not None), None)


def _default(content: Mapping[str, Any], role: str) -> int:
    """Bits of ``weights`` or ``activations`` in the quantization section."""
    sections = content.get("compression", content)
    for section in sections if isinstance(sections, list) else [sections]:
        part = section.get(role) if isinstance(section, dict) else None
        if isinstance(part, dict) and isinstance(part.get("bits"), int):
            return int(part["bits"])
    return 8
