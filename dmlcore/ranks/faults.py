"""The end of another process, as PyTorch or a board of shared memory tells of it, in a line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from dmlcore.errors import AnotherFailed, TrainingError

_OF_A_CONNECTION = ("Connection closed", "Connection reset", "onnection refused", "imed out", "gloo", "NCCL", "Broken pipe")
_OF_OTHER_LENGTHS = "exchanges something else"  # as `csrc/cpu/board.cpp` says it


@contextlib.contextmanager
def naming_dead(size: int, consequence: Callable[[], str], timed_out: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Say in a line that another process has ended, where PyTorch tells of a connection that is lost.

    Args:
        size: how many processes there are; 1: there are no others.
        consequence: gives a sentence on what follows.
        timed_out: is called where another did not answer in time.

    Raises:
        AnotherFailed: another process has ended.
        TrainingError: the processes exchange different things. Not all of them notice, so each that does tells it.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if size > 1 and _OF_OTHER_LENGTHS in text:
            raise TrainingError(
                f"the {size} processes exchange different things, so they have come apart. {consequence()}"
            ) from None
        if size == 1 or not any(word in text for word in _OF_A_CONNECTION):
            raise
        is_late = "imed out" in text
        if is_late:
            timed_out()
        reason = "did not answer in time (--timeout)" if is_late else "has ended; its own message says why"
        raise AnotherFailed(f"another of {size} processes {reason}. {consequence()}") from None
