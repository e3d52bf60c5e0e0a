from __future__ import annotations

import json

import pytest
import torch
from networks import inputs, random_policy, small
from safetensors.torch import load_file, safe_open, save_file

from haqsearch.errors import ModelError
from haqsearch.runtime import load_program, run_codes, save_program, verify


@pytest.mark.parametrize(
    "name", ["shortcut", "concat", "tokens", "relu6", "weight_norm", "lstm", "transposed", "embedding"]
)
def test_what_is_saved_is_what_is_loaded(name, tmp_path):
    ready = small(name)
    program = ready.lower(random_policy(ready, 2))
    save_program(program, tmp_path / "p.safetensors", {"who": "me"})
    loaded = load_program(tmp_path / "p.safetensors")
    verify(loaded)
    x = inputs(name, 40, 3)
    assert torch.equal(run_codes(loaded, x), run_codes(program, x))
    assert loaded.tensors == program.tensors
    assert loaded.constants.keys() == program.constants.keys()
    assert all(value.dtype == loaded.constants[key].dtype for key, value in program.constants.items())
    assert loaded.weight_bytes == program.weight_bytes
    assert loaded.digest == program.digest
    with safe_open(str(tmp_path / "p.safetensors"), framework="pt") as file:
        assert file.metadata()["who"] == "me"


def test_a_digest_tells_programs_apart_by_one_code_of_one_weight():
    program = small("perceptron").lower(random_policy(small("perceptron"), 4))
    before = program.digest
    key = next(key for key in program.constants if key.endswith(".weight"))
    program.constants[key].view(-1)[0] ^= 1
    assert program.digest != before
    program.constants[key].view(-1)[0] ^= 1
    assert program.digest == before


def test_weights_are_counted_densely_packed():
    ready = small("perceptron")
    program = ready.lower(random_policy(ready, 4))
    widths = [step.weight_format.width for step in program.instructions if step.layer]
    assert program.weight_bytes == -(-54 * widths[0] // 8) + -(-27 * widths[1] // 8)


@pytest.fixture
def saved(tmp_path):
    ready = small("perceptron")
    save_program(ready.lower(random_policy(ready, 2)), tmp_path / "p.safetensors")
    return tmp_path / "p.safetensors"


def test_saving_leaves_nothing_else_behind(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["p.safetensors"]


def test_a_save_that_fails_keeps_the_old_file(saved):
    before = saved.read_bytes()
    ready = small("shortcut")
    program = ready.lower(random_policy(ready, 2))
    program.constants["broken"] = "not a tensor"
    with pytest.raises(Exception):  # noqa: B017 whatever the library raises
        save_program(program, saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(ModelError, match=r"p\.safetensors: not a readable safetensors file"):
        load_program(saved)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no integer program at .*nothing\.safetensors"):
        load_program(tmp_path / "nothing.safetensors")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no integer program at"):
        load_program(tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a pickle", b"{}", b"\x00" * 64, b"\xff" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_program(path)


def test_plain_weights_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors: holds no integer program"):
        load_program(tmp_path / "w.safetensors")


def rewrite(path, change):
    """Save the file again with its program description changed."""
    with safe_open(str(path), framework="pt") as file:
        content = json.loads(file.metadata()["integer_program"])
    change(content)
    save_file(load_file(path), path, {"integer_program": json.dumps(content)})


def test_a_file_of_a_later_version_is_refused(saved):
    rewrite(saved, lambda content: content.update(schema_version=99))
    with pytest.raises(ModelError, match="schema_version 99, this version reads 1"):
        load_program(saved)


def test_a_description_that_is_no_json_is_refused(saved):
    save_file(load_file(saved), saved, {"integer_program": "{"})
    with pytest.raises(ModelError, match=r"p\.safetensors"):
        load_program(saved)


@pytest.mark.parametrize("key", ["instructions", "tensors", "output"])
def test_a_description_that_lacks_something_is_refused(saved, key):
    rewrite(saved, lambda content: content.pop(key))
    with pytest.raises(ModelError, match=r"p\.safetensors"):
        load_program(saved)


def test_an_operator_that_is_not_torchs_own_is_never_called(tmp_path):
    ready = small("sigmoid")
    save_program(ready.lower(random_policy(ready, 2)), tmp_path / "p.safetensors")

    def change(content):
        for step in content["instructions"]:
            if step["op"] == "float":
                step["attributes"]["target"] = "os.system"

    rewrite(tmp_path / "p.safetensors", change)
    with pytest.raises(ModelError, match=r"operator 'os\.system' is none of torch's own"):
        run_codes(load_program(tmp_path / "p.safetensors"), inputs("sigmoid", 1))
