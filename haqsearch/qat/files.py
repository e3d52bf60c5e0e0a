"""What training gives, as one safetensors file: a finished fine-tune is not done again."""

from __future__ import annotations

from pathlib import Path

import torch

from haqsearch.files import replacing
from haqsearch.graph import Graph
from haqsearch.qat.finetune import Finetuned
from haqsearch.quant import QWeight
from haqsearch.spec import Format

_FACTOR = "factor"  # key: factor/VALUE/FORMAT


def save_finetuned(tuned: Finetuned, path: Path) -> None:
    """Write the moved weights and activation scales; the folder is made if missing."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {key for node in tuned.graph.layers for key in (node.weight, node.bias) if key}
    tensors = {key: tuned.graph.parameters[key].contiguous() for key in keys}
    for (value, format), factor in tuned.factors.items():
        tensors[f"{_FACTOR}/{value}/{format}"] = torch.tensor(factor, dtype=torch.float64)
    with replacing(path) as temporary:
        save_file(tensors, str(temporary))


def load_finetuned(path: Path, graph: Graph, weights: dict[str, QWeight]) -> Finetuned:
    """Inverse of ``save_finetuned`` for the graph and the integer weights that training started from."""
    from safetensors.torch import load_file

    moved, factors = {}, {}
    for key, tensor in load_file(str(path)).items():
        kind, _, rest = key.partition("/")
        if kind == _FACTOR:
            value, _, format = rest.rpartition("/")
            factors[value, Format.parse(format)] = float(tensor)
        else:
            moved[key] = tensor
    trained = graph.replace(graph.nodes, {**graph.parameters, **moved})
    codes = {node.layer: weights[node.layer].encode(trained.parameters[node.weight]) for node in trained.layers}
    return Finetuned(trained, codes, factors)
