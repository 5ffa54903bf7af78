"""What moves on stderr while a command works: on a terminal the bar of a training, its losses and what is done now, each on a
line of its own; elsewhere plain lines. Nothing is shown of what takes less than two seconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from dmlcore import console, progress

QUIET = 2.0  # seconds before anything is shown of a task
AGAIN = 30.0  # seconds between lines about a task where there is no terminal
_current: Display | None = None


@contextlib.contextmanager
def shown() -> Iterator[Display]:
    """A display of all work inside the block."""
    global _current
    display, before = Display(), _current
    _current = display
    try:
        with progress.listening(display):
            yield display
    finally:
        display.close()
        _current = before


def current() -> Display:
    """The display of the command that runs; a new one outside of any."""
    return _current if _current is not None else Display()


class _Task:
    """A task that runs.

    Args:
        label: what is done.
        total: pieces; None where that is not known.
        done: pieces that were done before.
    """

    def __init__(self, label: str, total: int | None, done: int = 0) -> None:
        self.label, self.total = label, total
        self.done = self.first = done
        self.began = self.told = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def left(self) -> str:
        """The time that it will still take, as `1:30 left`; empty where that is not known."""
        if not self.total or self.done <= self.first:
            return ""
        return f"{clock(self.seconds * (self.total - self.done) / (self.done - self.first))} left"

    def counts(self) -> str:
        """How much is done."""
        return f"{self.done:,}/{self.total:,}" if self.total is not None else ""

    def line(self) -> str:
        """The task in a line, for where there is no bar."""
        return "  ".join(filter(None, (self.label, self.counts(), self.left())))


def clock(seconds: float) -> str:
    """A time as `0:05` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitting(entries: Sequence[str], width: int) -> str:
    """As many entries as fit into a line, and how many more there are."""
    for count in range(len(entries), 0, -1):
        rest = [f"+{len(entries) - count} more"] if count < len(entries) else []
        line = "  ".join([*entries[:count], *rest])
        if cell_len(line) <= width:
            return line
    return ""


class Display:
    """Progress of a command on stderr; a `progress.Listener`."""

    def __init__(self) -> None:
        self._console = console.stderr()
        self._is_terminal = self._console.is_terminal
        self._tasks: list[_Task] = []
        self._training: _Task | None = None
        self._has_stepped = False
        self._beside, self._entries = "", [""]
        self._live: Any = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    @property
    def has_bar(self) -> bool:
        """Whether a training has a bar now."""
        return self._training is not None and self._is_terminal

    def say(self, text: str, indent: int = 0) -> None:
        """A line; on a terminal it is folded between words, with so many blanks before further lines."""
        console.say_on(self._console, text, indent)

    def start(self, label: str, total: int, completed: int = 0) -> None:
        """Begin the bar of a training, on a terminal."""
        self._training, self._has_stepped = _Task(label, total, completed), False
        self._show()

    def step(self, completed: int, beside: str, entries: Sequence[str]) -> None:
        """Move the bar of a training.

        Args:
            completed: steps.
            beside: what stands beside the bar.
            entries: for the line below it, as many as fit.
        """
        assert self._training is not None
        if not self._has_stepped:  # the evaluation before the first step says nothing of the speed
            self._has_stepped = True
            self._training.first, self._training.began = completed, time.monotonic()
        self._training.done, self._beside, self._entries = completed, beside, list(entries)

    def left(self) -> str:
        """The time that the training will still take."""
        return self._training.left() if self._training is not None else ""

    def begin(self, label: str, total: int | None) -> None:
        """See `progress.Listener`."""
        with self._lock:
            self._tasks.append(_Task(label, total))
            self._show()
            if not self._is_terminal and len(self._tasks) == 1:
                self._wait(QUIET)

    def advance(self, done: int) -> None:
        """See `progress.Listener`."""
        if self._tasks:
            self._tasks[-1].done = done

    def end(self) -> None:
        """See `progress.Listener`."""
        with self._lock:
            if self._tasks:
                self._tasks.pop()
            is_idle = not self._tasks
        if is_idle:
            self._stop_waiting()
            if self._training is None:
                self._hide()

    def close(self) -> None:
        """End everything that moves."""
        self._stop_waiting()
        self._hide()  # shows the last step once more
        with self._lock:
            self._training = None
            self._tasks.clear()

    def lines(self, width: int) -> list[str]:
        """What a terminal of so many columns shows now."""
        with self._lock:
            lines = []
            if self._training is not None:
                lines.append(self._bar(self._training, self._beside, width))
                lines.append(fitting(self._entries, width))
            if self._tasks and self._tasks[0].seconds >= QUIET:
                lines.append(self._bar(self._tasks[-1], "", width))
        return [console.line(line, self._console) for line in lines if line]

    def _bar(self, task: _Task, beside: str, width: int) -> str:
        """Label, counts, bar, what stands beside, time left; what does not fit is left out from the end."""
        left = task.left() or clock(task.seconds)
        if task.total is None:
            return fitting([task.label, left], width)
        rest = "  ".join(filter(None, (beside, left)))
        for parts in ((task.label, task.counts(), rest), (task.label, task.counts(), left), (task.label, task.counts())):
            text = "  ".join(parts)
            room = min(width - cell_len(text) - 4, 24)
            if room >= 8:
                full = round(room * min(task.done / max(task.total, 1), 1))
                on, off = ("━", "╌") if (self._console.encoding or "").lower().startswith("utf") else ("#", "-")
                return "  ".join([f"{parts[0]} {parts[1]}", on * full + off * (room - full), *parts[2:]])
        text = f"{task.label} {task.counts()}"
        return text if cell_len(text) <= width else fitting([task.counts()], width)

    def _show(self) -> None:
        if self._live is not None or not self._is_terminal:
            return
        from rich.live import Live  # 30 ms that only a terminal needs

        self._live = Live(
            console=self._console, get_renderable=self._picture, refresh_per_second=5, transient=True, vertical_overflow="crop"
        )
        self._live.start()

    def _picture(self) -> Text:
        return Text("\n".join(self.lines(self._console.width - 1)), no_wrap=True)

    def _hide(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._tell)
        self._timer.daemon = True
        self._timer.start()

    def _stop_waiting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tell(self) -> None:
        """Say what goes on, where there is no terminal."""
        with self._lock:
            if self._tasks and self._timer is not None:
                self.say(self._tasks[-1].line())
                self._wait(AGAIN)
