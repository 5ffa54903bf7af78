"""How far long work is: the work tells it here, and whoever listens shows it. Nobody needs to listen.

What a command shows of it is in `commands/display.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

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


class Bar:
    """A listener that shows a bar on stderr, for programs that are no command. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar: Any = Progress(*columns, console=Console(stderr=True))
        self._tasks: list[Any] = []

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, label: str, total: int | None) -> None:
        """See `Listener`."""
        self._tasks.append(self._bar.add_task(label, total=total))

    def advance(self, done: int) -> None:
        """See `Listener`."""
        self._bar.update(self._tasks[-1], completed=done)

    def end(self) -> None:
        """See `Listener`."""
        self._tasks.pop()
