"""Ctrl-C, SIGTERM (batch systems, containers) and SIGHUP (a lost connection), which wait for the end of a step or of a write,
so that what is saved is the state between two steps."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from dmlcore.errors import Interrupted

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


@contextlib.contextmanager
def handled_by(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function handle the signals inside the block. SIGTERM and SIGHUP that are ignored, as below `nohup`, stay so.

    Does nothing outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell ignores SIGINT for what it runs in the background, but who sends one there means it.
    changed = [number for number in SIGNALS if number == signal.SIGINT or before[number] not in (signal.SIG_IGN, None)]
    show, came = sys.unraisablehook, threading.Event()

    def noted(number: int, frame: FrameType | None) -> None:
        came.set()
        handle(number, frame)

    def show_others(lost: sys.UnraisableHookArgs) -> None:
        # What the handler raised is lost in a finaliser, but `Interruption` raises it again. After a signal, finalisers also
        # meet what it has half undone, such as processes that it has ended as well.
        if not (came.is_set() or isinstance(lost.exc_value, Interrupted)):
            show(lost)

    sys.unraisablehook = show_others
    for number in changed:
        signal.signal(number, noted)
    try:
        yield
    finally:
        sys.unraisablehook = show
        for number in changed:
            signal.signal(number, before[number])


@contextlib.contextmanager
def unhandled() -> Iterator[None]:
    """Let the signals end the process at once inside the block, which waits in C++, where no handler of Python would be called.
    Those that are ignored stay so.

    Does nothing outside the main thread, which alone may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """A handler: end at once.

    Raises:
        Interrupted: always.
    """
    raise Interrupted(status=128 + number)


class Interruption:
    """Turns the first signal during a step into one after it. A second one interrupts the step. None interrupts a write.

    An exception that a handler raises is lost where Python ignores exceptions, as in finalisers. So a signal also stays
    requested until a block of `after` or `held` has raised it.

    Args:
        patience: for one of several processes, which end together: a signal is `noticed` and nothing else, until they agree to
            set `requested`. One that comes more than so many seconds later interrupts at once. 0: there is one process.

    Attributes:
        requested: the signal that waits, or None.
        noticed: the signal that the other processes are to be told of, or None.
    """

    def __init__(self, patience: float = 0) -> None:
        self.patience, self._since = patience, math.inf
        self.noticed: int | None = None
        self.requested: int | None = None
        self._waits = False
        self._writes = False

    def installed(self) -> contextlib.AbstractContextManager[None]:
        """Handle signals this way inside the block."""
        return handled_by(self._handle)

    @contextlib.contextmanager
    def after(self) -> Iterator[None]:
        """Let a signal wait for the end of the block.

        Raises:
            Interrupted: at the end, when one came; at the beginning, when one was lost before.
        """
        self._end()
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        self._end()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let every signal wait for the end of the block, which is short: files and the state that names them belong together.

        Raises:
            Interrupted: at the end, when one came, unless a block of `after` around it still waits.
        """
        self._writes = True
        try:
            yield
        finally:
            self._writes = False
        if not self._waits:
            self._end()

    def _end(self) -> None:
        if self.requested is not None:
            number, self.requested = self.requested, None
            interrupt(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._since = min(self._since, time.monotonic())
        if self.patience and time.monotonic() - self._since < self.patience:
            self.noticed = number
            return
        waits = self._writes or (self._waits and self.requested is None)
        self.requested = number
        if not waits:
            interrupt(number)
