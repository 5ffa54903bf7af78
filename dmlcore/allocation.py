"""How a process of the command line asks the system for memory.

A training step allocates and frees the same large arrays again and again. The C library gives each back to the system and asks
for it anew, and the system clears every page: a tenth of the time of the default run, up to half of it with larger images.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LARGEST_KEPT = 1 << 28  # bytes: larger arrays go back to the system when they are freed
_MOST_KEPT = 1 << 30  # bytes that are free at the end of the heap
_SMALL = 1 << 20  # bytes: what `give_back_large_arrays` leaves to the heap
_OPTIONS = {  # as glibc numbers them, and as the environment of new processes names them
    -3: ("MALLOC_MMAP_THRESHOLD_", _LARGEST_KEPT),
    -1: ("MALLOC_TRIM_THRESHOLD_", _MOST_KEPT),
}


def keep_freed_memory() -> None:
    """Let this process and those it starts use freed memory again instead of giving it back. What the environment says already
    stays. Nothing happens where the C library is not glibc."""
    mallopt = _of_library("mallopt")
    if mallopt is None:
        return
    for number, (name, size) in _OPTIONS.items():
        if name not in os.environ:
            os.environ[name] = str(size)
            mallopt(number, size)


def give_back_large_arrays() -> None:
    """Let this process give arrays of a megabyte or more back to the system when they are freed, where less memory is worth
    more than less time. It holds for the whole process from then on, for arrays of the caller too. What the environment said
    before `keep_freed_memory` stays. Nothing happens where the C library is not glibc."""
    name, size = _OPTIONS[-3]
    mallopt = _of_library("mallopt")
    if mallopt is not None and os.environ.get(name, str(size)) == str(size):
        mallopt(-3, _SMALL)


def give_back_freed_memory() -> None:
    """Give freed memory back to the system, before work that needs much for something else. Nothing happens where the C library
    is not glibc."""
    trim = _of_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_library(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
