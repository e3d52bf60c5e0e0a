"""Policies that are worked on at the same time, in threads of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TOGETHER = 2
"""Policies rounded in network order at a time. Two fill two cores, of which one fills one and a third; and not as many as there
are cores, so that a search, which hears of all of them later, is the same search on every machine."""


@contextmanager
def sharing_threads(count: int) -> Iterator[None]:
    """Within it torch's threads, and so those of the integer kernels, are shared by ``count`` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(before // count, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
