"""The reader, on small files in the real record format: a label byte, then 1,024 red, green and blue bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from haqsearch.data.cifar10 import FOLDER, crop_and_flip, crop_and_flip_bytes, load, load_bytes
from haqsearch.errors import DataError

from .laws import laws

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FILES = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]


def _records(seed: int, n: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.integers(0, 10, (n, 1), dtype=np.uint8), rng.integers(0, 256, (n, 3072), dtype=np.uint8)], axis=1
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for seed, name in enumerate(FILES):
        (tmp_path / FOLDER / name).write_bytes(_records(seed).tobytes())
    return tmp_path


def _real(records: np.ndarray) -> torch.Tensor:
    pixels = records[:, 1:].reshape(-1, 3, 32, 32) / 255
    return torch.from_numpy((pixels - MEAN[:, None, None]) / STD[:, None, None])


def test_records_become_normalised_images_in_the_order_of_the_files(root):
    data = load([root])
    train = np.concatenate([_records(seed) for seed in range(5)])
    assert data.inputs.shape == (15, 3, 32, 32)
    assert data.labels.tolist() == train[:, 0].tolist()
    torch.testing.assert_close(data.inputs.double(), _real(train), rtol=0, atol=1e-5)
    assert data.test_labels.tolist() == _records(5)[:, 0].tolist()
    torch.testing.assert_close(data.test_inputs.double(), _real(_records(5)), rtol=0, atol=1e-5)
    assert data.augment is crop_and_flip


def test_bytes_are_the_records_pixels_as_floats(root):
    data = load_bytes([root])
    assert data.name == "cifar10_bytes" and data.augment is crop_and_flip_bytes
    assert data.test_inputs.dtype == torch.float32
    assert data.test_inputs.flatten(1).tolist() == _records(5)[:, 1:].tolist()
    assert data.test_labels.tolist() == _records(5)[:, 0].tolist()
    assert float(data.augment(data.inputs, torch.Generator()).min()) == 0


def test_a_record_made_by_hand_is_decoded_colour_by_colour_and_row_by_row(root):
    record = np.zeros(3073, dtype=np.uint8)
    record[0] = 7
    record[1 + 0 * 1024 + 2 * 32 + 5] = 255  # red, row 2, column 5
    record[1 + 1 * 1024 + 31 * 32 + 0] = 255  # green, row 31, column 0
    record[1 + 2 * 1024 + 0 * 32 + 31] = 51  # blue, row 0, column 31
    (root / FOLDER / "test_batch.bin").write_bytes(record.tobytes())
    data = load([root])
    image = data.test_inputs[0].double() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert data.test_labels.tolist() == [7]
    wanted = torch.zeros(3, 32, 32, dtype=torch.float64)
    wanted[0, 2, 5], wanted[1, 31, 0], wanted[2, 0, 31] = 1.0, 1.0, 0.2
    torch.testing.assert_close(image, wanted, rtol=0, atol=1e-6)


def test_the_first_root_that_has_the_folder_is_read(root, tmp_path):
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    assert load([empty, root]).labels.tolist() == load([root]).labels.tolist()


@pytest.mark.parametrize("roots", [0, 1])
def test_a_missing_folder_is_refused_with_where_it_was_looked_for(tmp_path, roots):
    with pytest.raises(DataError) as caught:
        load([tmp_path] * roots)
    assert f"no folder {FOLDER} in {tmp_path if roots else 'nowhere'}" in str(caught.value)
    assert "--data-root or HAQSEARCH_DATA" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_by_name(root, name):
    (root / FOLDER / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing"):
        load([root])


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_truncated_file_is_refused_by_name_and_size(root, size):
    (root / FOLDER / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_4\.bin is truncated: {size} bytes are no multiple of 3073"):
        load([root])


def test_a_label_above_nine_is_refused(root):
    """As in CIFAR-100's files, whose size is a multiple of 3,074, or in garbage."""
    records = _records(0)
    records[1, 0] = 10
    (root / FOLDER / "data_batch_2.bin").write_bytes(records.tobytes())
    with pytest.raises(DataError, match=r"data_batch_2\.bin holds a label above 9"):
        load([root])


@settings(laws, max_examples=20)
@given(st.integers(0, 2**31))
def test_every_augmented_image_is_a_crop_of_the_image_on_black_and_maybe_mirrored(seed):
    images = _real(_records(seed)).float()
    augmented = crop_and_flip(images, torch.Generator().manual_seed(seed))
    assert augmented.shape == images.shape
    assert augmented.is_contiguous()
    black = torch.from_numpy(-MEAN / STD).float().view(1, 3, 1, 1)
    padded = black.repeat(len(images), 1, 40, 40)
    padded[:, :, 4:-4, 4:-4] = images
    for before, after in zip(padded, augmented, strict=True):
        crops = torch.stack([before[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)])
        candidates = torch.cat([crops, crops.flip(-1)])
        assert int(((candidates - after).abs().amax((1, 2, 3)) < 1e-5).sum()) == 1


def test_crops_and_flips_are_fixed_by_the_generator_and_all_occur():
    ramp = torch.arange(1024.0).view(1, 1, 32, 32).repeat(2000, 3, 1, 1)
    runs = [crop_and_flip(ramp, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    corners = runs[0][:, 0, 16, 16:18].round()  # the inside shows the move and, by its slope, the flip
    assert len(torch.unique(corners, dim=0)) == 9 * 9 * 2
    flipped = float((corners[:, 1] < corners[:, 0]).float().mean())
    assert 0.45 < flipped < 0.55
