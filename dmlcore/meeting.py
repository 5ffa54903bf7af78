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
from typing import Any, Protocol

from dmlcore.errors import TrainingError

PAUSE = 0.02  # seconds, for a few processes: the more there are, the more rarely each asks the store


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
    answered = ""
    while time.monotonic() < ends:
        if rank == 0:
            begun = _called(store, own, size)
        else:
            begun, answered = _heard(store, own, rank, answered)
        if begun:
            return hashlib.sha256(begun.encode()).hexdigest()[:32]
        time.sleep(PAUSE * (1 + size / 64))
    raise TrainingError(f"the {size} processes have not all started within {patience.total_seconds() / 60:.0f} minutes")


def _called(store: Store, own: str, size: int) -> str:
    """By the first process: call those that are here. All names, once all have heard this very call; else an empty text."""
    names = _values(store, [f"here/{rank}" for rank in range(size)])
    if not names or names[0] != own:  # a later process has this one's place, so the launcher will end this one
        return ""
    call = ",".join(names)
    store.set("call", call)
    answers = _values(store, [f"heard/{rank}" for rank in range(1, size)]) if size > 1 else []
    if answers != [call] * (size - 1):
        return ""
    store.set("begun", call)
    return call


def _heard(store: Store, own: str, rank: int, answered: str) -> tuple[str, str]:
    """By another one: answer a call that has its name. All names, once the first one has heard from all, else an empty text;
    and the call that it has answered."""
    if answered:  # before that nobody can have begun with it
        (begun,) = _values(store, ["begun"]) or [""]
        if own in begun.split(","):
            return begun, answered
    (call,) = _values(store, ["call"]) or [""]
    if own in call.split(",") and call != answered:
        store.set(f"heard/{rank}", call)
        answered = call
    return "", answered


def _values(store: Any, keys: list[str]) -> list[str]:
    """Of all keys, or none where one is missing. The first process asks for one of each process, so it asks for all at once."""
    if not store.check(keys):
        return []
    has_more = getattr(store, "has_extended_api", None)  # not every store of PyTorch has
    if has_more is not None and has_more():
        return [value.decode() for value in store.multi_get(keys)]
    return [store.get(key).decode() for key in keys]
