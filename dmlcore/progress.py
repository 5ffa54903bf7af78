"""How far long work is: the work tells it here, and whoever listens shows it. Nobody needs to listen.

What a command shows of it is in `commands/display.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """Receives how far work is. Tasks may begin within others."""

    def begin(self, label: str, total: int | None) -> None:
        """A task begins.

        Args:
            label: what is done, such as `decoding images`.
            total: how many pieces there are; None where that is not known.
        """
        ...

    def advance(self, done: int) -> None:
        """So many pieces of the task that began last are done."""
        ...

    def end(self) -> None:
        """The task that began last is over, also by an error."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Tell of all work inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def task(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A task; gives what is called with the number of pieces that are done.

    Args:
        label: what is done.
        total: how many pieces there are; None where that is not known.
    """
    listener = _listener.get()
    if listener is None:
        yield lambda done: None
        return
    listener.begin(label, total)
    try:
        yield listener.advance
    finally:
        listener.end()


def track(items: Iterable[T], label: str, total: int, size: int = 1) -> Iterator[T]:
    """The items, told of as they pass.

    Args:
        items: any.
        label: what is done.
        total: how many pieces all items are.
        size: pieces of an item.
    """
    with task(label, total) as advance:
        for number, item in enumerate(items, 1):
            yield item
            advance(min(number * size, total))
