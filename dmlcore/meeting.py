"""How processes that were started together find each other in a store that may still hold what earlier ones wrote.

`torchrun` keeps one store while it starts processes again. On several machines its agents count their restarts apart, so no
number that they give tells one start from another. Here each process draws a name, and the first one calls all names until all
have heard.
"""

from __future__ import annotations

import datetime
import hashlib
import time
import uuid
from typing import Protocol

from dmlcore.errors import TrainingError

PAUSE = 0.02  # seconds


class Store(Protocol):
    """What is used of a store of torch.distributed."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


def met(store: Store, rank: int, size: int, patience: datetime.timedelta) -> str:
    """Wait until all processes of this start are here.

    Args:
        store: that all of them share.
        rank: of this process.
        size: how many there are.
        patience: how long to wait.

    Returns:
        A name for this start, the same in all its processes and in no other start.

    Raises:
        TrainingError: some have not come.
    """
    own, ends = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    store.set(f"here/{rank}", own)
    while time.monotonic() < ends:
        call = _called(store, own, size) if rank == 0 else _heard(store, own, rank)
        if call:
            return hashlib.sha256(call.encode()).hexdigest()[:32]
        time.sleep(PAUSE)
    raise TrainingError(f"the {size} processes have not all started within {patience.total_seconds() / 60:.0f} minutes")


def _called(store: Store, own: str, size: int) -> str:
    """By the first process: call those that are here. All names, once all have heard this very call; else an empty text."""
    names = [_value(store, f"here/{rank}") for rank in range(size)]
    if not all(names) or names[0] != own:  # a later process has this one's place, so the launcher will end this one
        return ""
    call = ",".join(names)
    store.set("call", call)
    if any(_value(store, f"heard/{rank}") != call for rank in range(1, size)):
        return ""
    store.set("begun", call)
    return call


def _heard(store: Store, own: str, rank: int) -> str:
    """By another one: answer a call that has its name. All names, once the first one has heard from all; else an empty text."""
    begun = _value(store, "begun")
    if own in begun.split(","):
        return begun
    call = _value(store, "call")
    if own in call.split(","):
        store.set(f"heard/{rank}", call)
    return ""


def _value(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
