"""Flags of the commands that several processes can share, and how these are started."""

from __future__ import annotations

from collections.abc import Sequence

from dmlcore import console, launch
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.flags import flag

SHARING = [
    flag("processes", int, "Processes that divide the work, on this machine.", 1),
    flag("timeout", str, "How long a process waits for the others, as in 90s, 10m or 2h.", "10m"),
]


def started(processes: int, words: Sequence[str]) -> int | None:
    """The exit status of several processes that have run the command, or None where this process runs it.

    Args:
        processes: as `--processes` says.
        words: of the command.
    """
    check_range("processes", processes, least=1)
    if processes == 1:
        return None
    if launch.place().size > 1:
        raise ConfigError("--processes starts processes, but this is one of several already")
    return launch.start(processes, launch.words_of_a_process(words), 0, console.fail)
