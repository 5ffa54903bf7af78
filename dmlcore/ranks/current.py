"""What stands for the length of a `with` block, in the thread that entered it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from dmlcore.ranks.group import Group


class CurrentGroup(threading.local):
    """The group of the innermost block that a thread is in.

    Attributes:
        group: None outside of all blocks, or where a block says none.
    """

    group: Group | None = None

    @contextlib.contextmanager
    def within(self, group: Group | None) -> Iterator[None]:
        """Let a group be the current one inside a block."""
        before = self.group
        self.group = group
        try:
            yield
        finally:
            self.group = before
