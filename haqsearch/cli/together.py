"""Policies that are worked on at the same time, in threads of one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TOGETHER = 2
"""Policies rounded in network order at a time. Two fill two cores, of which one fills one and a third; and not as many as there
are cores, so that a search, which hears of all of them later, is the same search on every machine."""


@contextmanager
def sharing_threads(count: int) -> Iterator[None]:
    """Within it torch's threads, and so those of the integer kernels, are shared by ``count`` threads.

    Numpy has as few: its products in an agent are small, and a thread that waits for a share of one keeps a core from them.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    each = max(before // count, 1)
    torch.set_num_threads(each)
    try:
        with threadpool_limits(each, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
