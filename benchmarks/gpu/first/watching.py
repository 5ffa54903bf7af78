"""One process under a time limit: its lines as they come, its end, and the end of everything that it started."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAST_LINES = 40  # of the output, kept to say why a process failed
GRACE = 5.0  # seconds for a killed process to end: one that waits inside the driver may never do so

QUIET = 1.0  # seconds without a line after a process's end, before a pipe that is still open is left


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        status: exit status, negative for a signal; None where the limit ended it.
        lines: the last lines of stdout and stderr.
        is_gone: False where even SIGKILL did not end it.
    """

    status: int | None
    lines: list[str]
    is_gone: bool = True


def watch(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    limit: Callable[[], float],
    receive: Callable[[str], object],
) -> Ending:
    """Run a process until it ends or its limit has passed.

    Args:
        command: program and arguments.
        folder: where it runs.
        environment: added to this process's.
        limit: reading of `time.monotonic` at which it is killed; asked again and again, since it may move.
        receive: gets every line of its output.

    Raises:
        OSError: the program cannot be started.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts can be ended with it
    )
    output: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, output), daemon=True).start()
    last: deque[str] = deque(maxlen=LAST_LINES)
    is_late, quiet_since = False, 0.0
    try:
        while True:
            if time.monotonic() >= limit():
                is_late = True
                break
            try:
                line = output.get(timeout=0.05)
            except queue.Empty:
                # Its own children may hold the pipe open after its end, but what it wrote itself has to be read.
                if process.poll() is None:
                    continue
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since > QUIET:
                    break
                continue
            quiet_since = 0.0
            if line is None:
                break
            last.append(line)
            receive(line)
        if not is_late:
            is_late = not _ends(process, max(limit() - time.monotonic(), 0.0))
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # nothing of the group is left
            pass
    is_gone = _ends(process, GRACE)
    return Ending(None if is_late else process.returncode, [line for line in last if line.strip()], is_gone)


def _read(process: subprocess.Popen[str], output: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        output.put(line.rstrip("\n"))
    output.put(None)


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
