from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def shared_file() -> Callable[[str], Path]:
    """Finds validation data that is too large to commit, in $HAQSEARCH_SHARED or in ``shared`` beside the checkout."""

    def find(name: str) -> Path:
        checkout = Path(__file__).parents[2]
        root = Path(os.environ.get("HAQSEARCH_SHARED") or checkout.parent / "shared")
        if not (root / name).is_file():
            pytest.skip(f"needs {name} in {root}; set HAQSEARCH_SHARED to the folder that holds it")
        return root / name

    return find
