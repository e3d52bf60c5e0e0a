"""The reader, on small folders of photographs in one colour each."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from haqsearch.data.imagenet import FOLDER, load
from haqsearch.errors import DataError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
PHOTOGRAPHS = {"007/001.jpg": (255, 0, 0), "999/000.jpg": (0, 0, 255), "007/002.jpg": (128, 128, 128)}


def photograph(path, colour=(0, 255, 0), size=(224, 224), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, quality=95)


@pytest.fixture
def root(tmp_path):
    for name, colour in PHOTOGRAPHS.items():
        photograph(tmp_path / FOLDER / name, colour)
    (tmp_path / FOLDER / "ATTRIBUTION.txt").write_text("somebody")
    return tmp_path


def test_photographs_are_normalised_and_labelled_by_their_folder(root):
    data = load([root])
    assert data.labels.tolist() == [999, 7, 7]  # in the order of the file names
    assert data.inputs.shape == (3, 3, 224, 224)
    colours = data.inputs.mean((2, 3)) * STD + MEAN
    expected = torch.tensor([[0, 0, 1], [1, 0, 0], [128 / 255] * 3])
    torch.testing.assert_close(colours, expected, rtol=0, atol=0.02)  # JPEG is not exact


def test_a_grey_photograph_has_three_equal_colours(root):
    photograph(root / FOLDER / "007" / "003.jpg", 100, mode="L")
    pixels = load([root]).inputs[3] * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 100 / 255), rtol=0, atol=0.02)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=f"imagenet_compat500 is not there: no folder {FOLDER} in {tmp_path}"):
        load([tmp_path])
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(DataError, match="holds no photographs"):
        load([tmp_path])


@pytest.mark.parametrize("name", ["cats", "12", "1234"])
def test_a_folder_that_is_no_class_is_refused(root, name):
    photograph(root / FOLDER / name / "000.jpg")
    with pytest.raises(DataError, match=f"{name} is not named by a class index"):
        load([root])


def test_a_photograph_of_another_size_is_refused(root):
    photograph(root / FOLDER / "007" / "003.jpg", size=(200, 100))
    with pytest.raises(DataError, match=r"003\.jpg has 200 x 100 pixels, not 224 x 224"):
        load([root])


@pytest.mark.parametrize("keep", [0, 300])
def test_a_truncated_photograph_is_refused_by_name(root, keep):
    path = root / FOLDER / "007" / "001.jpg"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"001\.jpg is not a readable photograph"):
        load([root])
