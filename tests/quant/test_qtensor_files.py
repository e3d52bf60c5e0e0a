"""Tensors of every number format in files, and files that are spoilt."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from haqsearch.errors import DataError
from haqsearch.quant import QTensor, encode, from_packed_state, packed_state
from haqsearch.spec import Format

from .tensors import EVERY, same, tensor


def test_a_file_holds_every_format(tmp_path):
    made = {f"layer.{i}.weight": encode(tensor((3, 37), i), format) for i, format in enumerate(EVERY)}
    state, metadata = packed_state(made)
    save_file(state, tmp_path / "x.safetensors", metadata)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        found = from_packed_state({key: file.get_tensor(key) for key in file.keys()}, file.metadata())
    assert found.keys() == made.keys()
    assert all(same(found[name], made[name]) for name in made)


def _spoil(state, metadata, how):
    if how == "no metadata":
        return state, None
    if how == "no json":
        return state, {"haqsearch_tensors": "{"}
    if how == "missing":
        return {"w.codes": state["w.codes"]}, metadata
    if how == "short":
        return {**state, "w.codes": state["w.codes"][:-1]}, metadata
    if how == "nan":
        return {**state, "w.scale": state["w.scale"] * torch.nan}, metadata
    old, new = {
        "version": ('_version": 1', '_version": 9'),
        "format": ("int4", "int99"),
        "shape": ("[3, 5]", "[3, -5]"),
    }[how]
    return state, {"haqsearch_tensors": metadata["haqsearch_tensors"].replace(old, new)}


@pytest.mark.parametrize("how", ["no metadata", "no json", "missing", "short", "nan", "version", "format", "shape"])
def test_a_spoilt_file_is_refused_by_name(how):
    state, metadata = _spoil(*packed_state({"w": encode(torch.randn(3, 5), "int4")}), how)
    with pytest.raises(DataError, match=r"^w\.safetensors: "):
        from_packed_state(state, metadata, "w.safetensors")


def test_parameters_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="has the parameters"):
        QTensor(Format.of("int4"), torch.zeros(3, 5, dtype=torch.int32), {"scale": torch.ones(1, 1)})
    with pytest.raises(DataError, match="is stored as codes, scale, not codes"):
        QTensor.unpack({"codes": torch.zeros(8, dtype=torch.uint8)}, Format.of("int4"), (3, 5))
    beyond = QTensor(Format.of("int4"), torch.full((1, 5), 8, dtype=torch.int32), {"scale": torch.ones(1, 1)})
    with pytest.raises(DataError, match="cannot pack"):
        beyond.pack()
