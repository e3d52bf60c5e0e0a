from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from haqsearch.data import DATASETS
from haqsearch.data.digits import load, shift

from .laws import laws


def test_the_digits_are_1797_real_images():
    digits = load([])
    assert digits.inputs.shape == (1797, 1, 8, 8)
    assert float(digits.inputs.min()) == -1.0
    assert float(digits.inputs.max()) == 1.0
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # The first image, a zero, as the UCI file has it (0 is background, 16 is ink).
    row = ((digits.inputs[0, 0, 3] + 1) * 8).tolist()
    assert row == [0, 4, 12, 0, 0, 8, 8, 0]
    assert digits.labels[:10].tolist() == list(range(10))
    assert len(torch.unique(digits.inputs.flatten(1), dim=0)) > 1790


@laws
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(3, 9), st.integers(3, 9))
def test_every_image_is_moved_by_a_pixel_at_most_over_background(seed, n, height, width):
    images = torch.rand(n, 2, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    moved = shift(images, torch.Generator().manual_seed(seed))
    assert moved.shape == images.shape
    padded = torch.full((n, 2, height + 2, width + 2), -1.0)
    padded[:, :, 1:-1, 1:-1] = images
    for before, after in zip(padded, moved, strict=True):
        candidates = [before[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        assert sum(torch.equal(c, after) for c in candidates) == 1


def test_moves_are_fixed_by_the_generator_and_all_nine_occur():
    images = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    runs = [shift(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    ones = shift(torch.ones(300, 1, 8, 8), torch.Generator().manual_seed(1))
    assert len(torch.unique(ones.flatten(1), dim=0)) == 9


@pytest.mark.parametrize("target", DATASETS.values())
def test_every_named_data_set_is_a_function(target):
    module, _, name = target.partition(":")
    assert callable(getattr(import_module(module), name))
