"""One process at a time in a folder. The system releases the lock when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

from dmlcore.errors import ConfigError
from dmlcore.files import write_error

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None

NAME = ".lock"
_held: set[Path] = set()  # folders that this process has, of which it may not ask the system: that would give them up


class FolderLock:
    """The right to write into a folder, from its making until `release` or the end of the process.

    Record locks are used: unlike those of `flock` they are not handed on to forked workers, which may outlive the process, and
    network file systems know them. A process may take a lock twice.

    Args:
        folder: that exists. The lock is its file `.lock`, which stays.
        note: is told in a sentence where the file system cannot lock.

    Raises:
        ConfigError: another process has it.
        TrainingError: the file cannot be written.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self._file: IO[str] | None = None
        try:
            file = open(folder / NAME, "a+", encoding="utf-8")
        except OSError as error:
            raise write_error(folder / NAME, error) from error
        try:
            if fcntl is None:
                raise OSError("this system has no record locks")
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).strip().splitlines()
            file.close()
            who = holder[0] if holder else "another process"
            raise ConfigError(f"{folder} is in use by {who}. Wait for it to end, stop it, or choose another folder.") from None
        except OSError as error:
            note(f"{folder} cannot be locked ({error.strerror or error}): see to it that no other process writes there")
        self._file, self._folder = file, folder.resolve()
        _held.add(self._folder)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            file.flush()

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            _held.discard(self._folder)


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder now. Where that cannot be found out, no."""
    if folder.resolve() in _held:
        return True
    try:
        with open(folder / NAME, encoding="utf-8") as file:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False
