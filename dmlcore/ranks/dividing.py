"""Work on a data set that the ranks divide among them, such as embedding it before an evaluation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from dmlcore.ranks.group import Group

_current = threading.local()


@contextlib.contextmanager
def divided(group: Group | None) -> Iterator[None]:
    """Inside the block work that can be divided is, among all ranks, which all enter it. None: it is not."""
    before = getattr(_current, "group", None)
    _current.group = group
    try:
        yield
    finally:
        _current.group = before


def dividing() -> Group | None:
    """The ranks that divide the work now."""
    return getattr(_current, "group", None)


def share_of(count: int, rank: int, size: int) -> range:
    """The part of `count` things that is one rank's. The parts follow one another."""
    return range(count * rank // size, count * (rank + 1) // size)
