"""Ctrl-C that waits for the end of a step, so that what is saved is the state between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Turns the first interrupt during a step into one after it; a second one interrupts at once.

    Attributes:
        requested: an interrupt came during a step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[Interruption]:
        """Handle SIGINT this way inside the block; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Let an interrupt wait for the end of the block.

        Raises:
            KeyboardInterrupt: at the end, when one came.
        """
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
        if self.requested:
            self.requested = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._waiting and not self.requested:
            self.requested = True
        else:
            raise KeyboardInterrupt
