from __future__ import annotations

import numpy as np
import pytest

from haqsearch.data.kws import FOLDER, load
from haqsearch.errors import DataError

X = np.arange(3 * 490, dtype=np.float32).reshape(3, 1, 49, 10)
Y = np.array([0, 11, 5])


def write(root, x=X, y=Y):
    (root / FOLDER).mkdir(exist_ok=True)
    np.save(root / FOLDER / "x.npy", x)
    np.save(root / FOLDER / "y.npy", y)
    return root


def test_windows_and_labels_are_read_as_they_are(tmp_path):
    data = load([write(tmp_path)])
    assert data.inputs.numpy().tolist() == X.tolist()
    assert data.labels.tolist() == Y.tolist()
    assert data.test_inputs is None


def test_a_missing_folder_is_refused_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=f"kws01 is not there: no folder {FOLDER} in {tmp_path}"):
        load([tmp_path])


@pytest.mark.parametrize("name", ["x.npy", "y.npy"])
def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path, name):
    path = write(tmp_path) / FOLDER / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=f"{name} is not a readable .npy array"):
        load([tmp_path])
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        load([tmp_path])


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    write(tmp_path)
    np.save(tmp_path / FOLDER / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"x\.npy is not a readable"):
        load([tmp_path])


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (X[:, 0], Y, r"windows of shape \(3, 49, 10\)"),
        (X[:2], Y, r"windows of shape \(2, 1, 49, 10\) and labels of shape \(3,\)"),
        (X, Y + 1, r"labels that are no integers 0 \.\. 11"),
        (X, Y - 1, r"labels that are no integers 0 \.\. 11"),
        (X, Y * 0.5, r"labels that are no integers 0 \.\. 11"),
        (X[:0], Y[:0], "inputs is empty"),
        (X * np.nan, Y, "NaN"),
    ],
)
def test_arrays_that_are_something_else_are_refused(tmp_path, x, y, said):
    with pytest.raises(DataError, match=said):
        load([write(tmp_path, x, y)])
