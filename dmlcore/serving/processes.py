"""The processes that a command was started in, which divide its work: embedding and ranking."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator

from torch import distributed

from dmlcore import launch
from dmlcore.config import seconds_of
from dmlcore.ranks import Group
from dmlcore.ranks.dividing import divided
from dmlcore.ranks.faults import naming_dead
from dmlcore.training.building import choose_device


@contextlib.contextmanager
def sharing(device: str, timeout: str) -> Iterator[str]:
    """Let the processes that this one was started with divide the work inside the block. Nothing happens where it is alone.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        timeout: how long one waits for the others, as in `10m`.

    Yields:
        The device of this process.

    Raises:
        AnotherFailed: another process has ended.
    """
    place = launch.place()
    if place.size == 1:
        yield device
        return
    kind = choose_device(device).type
    launch.join(kind)
    group = Group(distributed.new_group(timeout=datetime.timedelta(seconds=seconds_of(timeout, "timeout"))))
    try:
        with divided(group), naming_dead(place.size, lambda: "Nothing was written"):
            yield f"{kind}:{place.local_rank}" if kind == "cuda" else kind
    finally:
        if kind == "cpu":  # NCCL might wait for processes that are gone
            distributed.destroy_process_group()
