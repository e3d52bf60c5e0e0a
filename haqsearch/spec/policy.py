"""A policy: the formats of every layer's weights and input activations."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from haqsearch.errors import PolicyError
from haqsearch.spec.formats import FLOAT32, TAKEN, Format
from haqsearch.spec.model import ModelSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True, order=True)
class Choice:
    """Formats of one layer: its weights, and the activation it reads."""

    weight: Format
    activation: Format

    def __str__(self) -> str:
        usual = not self.weight.granularity and not self.activation.granularity
        if usual and self.weight.kind == "int" and self.activation.kind == "uint":
            return f"w{self.weight.width}a{self.activation.width}"
        if self == FLOAT_CHOICE:
            return str(self.weight)
        return f"{self.weight}/{self.activation}"

    @property
    def computed(self) -> Choice:
        """The formats that programs compute with, which devices are asked about: weights may be stored in others."""
        return Choice(self.weight.computed_as, self.activation) if self.weight.is_decoded else self

    @classmethod
    def parse(cls, text: str) -> Choice:
        """``w4a8`` (int4 weights, uint8 activations), ``float32`` or ``FORMAT/FORMAT``; PolicyError otherwise."""
        text = text.strip()
        if match := re.fullmatch(r"w(\d+)a(\d+)", text):
            return cls(Format.parse(f"int{match[1]}"), Format.parse(f"uint{match[2]}"))
        if text == "float32":
            return cls(FLOAT32, FLOAT32)
        weight, slash, activation = text.partition("/")
        if not slash:
            raise PolicyError(f"cannot read the widths {text!r}; write them like w4a8, or float32")
        return cls(Format.parse(weight), Format.parse(activation))


FLOAT_CHOICE = Choice(FLOAT32, FLOAT32)


@dataclass(frozen=True)
class Policy(Mapping[str, Choice]):
    """Immutable map from layer name to Choice, in the network's order. PolicyError for a format that is for tensors alone."""

    choices: Mapping[str, Choice]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", dict(self.choices))
        for layer, choice in self.choices.items():
            for format in (choice.weight, choice.activation):
                # Of any width: devices have 1-bit integers and short floats too, and say themselves what they lack.
                number = format.kind in {"int", "uint", "float"} and not format.granularity
                if not (number or format.in_programs):
                    raise PolicyError(
                        f"layer {layer!r} cannot have {format}, which is for tensors alone; programs take {TAKEN}"
                    )
            if choice.activation.is_decoded:
                raise PolicyError(
                    f"layer {layer!r} cannot have {choice.activation} activations: it is for weights; write uint8, say"
                )

    def __getitem__(self, layer: str) -> Choice:
        return self.choices[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __hash__(self) -> int:
        return hash(frozenset(self.choices.items()))  # policies that are equal in another order hash alike

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that depend on every layer's formats and on nothing else."""
        content = json.dumps(self._layers_json(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def replace(self, layer: str, weight: Format | None = None, activation: Format | None = None) -> Policy:
        """The same policy with one layer changed. Ties are the caller's to keep. Raises PolicyError on an unknown layer."""
        if layer not in self.choices:
            raise PolicyError(f"no layer {layer!r} in this policy{_did_you_mean(layer, self.choices)}")
        old = self.choices[layer]
        return Policy({**self.choices, layer: Choice(weight or old.weight, activation or old.activation)})

    @classmethod
    def uniform(cls, model: ModelSpec, choice: Choice, fixed: Mapping[str, Choice] | None = None) -> Policy:
        """Every quantizable layer at ``choice``, ``fixed`` layers at theirs, the others in float32."""
        fixed = fixed or {}
        return cls(
            {layer.name: fixed.get(layer.name, choice) if layer.quantizable else FLOAT_CHOICE for layer in model}
        )

    def _layers_json(self) -> dict[str, dict[str, str]]:
        return {
            name: {"weight": str(choice.weight), "activation": str(choice.activation)}
            for name, choice in self.choices.items()
        }

    def to_json(self, **provenance: Any) -> dict[str, Any]:
        """JSON object with the schema version, the layers and whatever ``provenance`` is given (costs, model digest...)."""
        return {"schema_version": SCHEMA_VERSION, "digest": self.digest, "layers": self._layers_json(), **provenance}

    @classmethod
    def from_json(cls, data: Any, where: str = "policy") -> Policy:
        """Policy from ``to_json``'s object. Raises PolicyError naming ``where`` and the key that is wrong."""
        if not isinstance(data, dict) or not isinstance(data.get("layers"), dict):
            raise PolicyError(f'{where}: no "layers" object; a policy file is what a run writes as policy.json')
        if data.get("schema_version") != SCHEMA_VERSION:
            raise PolicyError(
                f"{where}: schema_version is {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
            )
        choices = {}
        for name, entry in data["layers"].items():
            if not isinstance(entry, dict) or set(entry) != {"weight", "activation"}:
                raise PolicyError(f'{where}: layer {name!r} needs exactly the keys "weight" and "activation"')
            try:
                choices[name] = Choice(Format.parse(entry["weight"]), Format.parse(entry["activation"]))
            except PolicyError as error:
                raise PolicyError(f"{where}: layer {name!r}: {error}") from None
        return cls(choices)

    def check(self, model: ModelSpec, where: str = "policy") -> Policy:
        """This policy in the model's order.

        Raises PolicyError if layers differ, a tie is broken, or a layer that stays in float is asked for bits.
        """
        names = [layer.name for layer in model]
        if missing := [name for name in names if name not in self.choices]:
            raise PolicyError(
                f"{where}: written for another model: layer {missing[0]!r} of {model.name} is missing ({len(missing)} in all)"
            )
        if unknown := [name for name in self.choices if name not in model]:
            raise PolicyError(
                f"{where}: written for another model: {model.name} has no layer {unknown[0]!r}{_did_you_mean(unknown[0], names)}"
            )
        for layer in model:
            choice = self.choices[layer.name]
            if not layer.quantizable and choice != FLOAT_CHOICE:
                raise PolicyError(
                    f"{where}: layer {layer.name!r} stays in float32 ({layer.reason}); write float32 for it"
                )
            if layer.quantizable and choice.weight.is_float != choice.activation.is_float:
                raise PolicyError(
                    f"{where}: layer {layer.name!r}: weights and activation are both float32 or both integers"
                )
        for tie, members in model.ties.items():
            formats = {self.choices[name].activation for name in members}
            if len(formats) > 1:
                raise PolicyError(
                    f"{where}: layers {', '.join(members)} read the same tensor {tie!r}: one activation format, please"
                )
        return Policy({name: self.choices[name] for name in names})


def _did_you_mean(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
