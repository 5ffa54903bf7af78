"""The same work for many rows by several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from dmlcore import progress

_BLOCK = 8192  # rows that wait for a thread at a time: each takes a kilobyte while it waits
_MOST = 16


def for_each_row(count: int, work: Callable[[int], object], label: str) -> None:
    """Call `work` with each row below `count`, and tell how far it is.

    Args:
        count: of rows.
        work: releases the interpreter lock most of the time, as reading and decoding do.
        label: what is done, such as `decoding images`.
    """

    def worked() -> Iterator[object]:
        with ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1)) as pool:
            for start in range(0, count, _BLOCK):
                yield from pool.map(work, range(start, min(start + _BLOCK, count)))

    for _ in progress.track(worked(), label, count):
        pass
