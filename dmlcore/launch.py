"""How a process learns that it is one of several, and joins the others; and starting several on this machine.

`torchrun` sets `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, as `accelerate launch` does. Variables of Slurm alone mean nothing here:
a stray `srun` must not start a group.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dmlcore.errors import ConfigError

START = datetime.timedelta(minutes=30)
"""How long processes wait for the slowest to start and to open its data."""


SHARED = ("train", "eval", "embed", "index")
"""Commands that several processes work on together."""


class Place(NamedTuple):
    """This process among those that were started together."""

    rank: int
    size: int
    local_rank: int


def place() -> Place:
    """What the environment says; `(0, 1, 0)` for a process of its own.

    Raises:
        ConfigError: a variable is no number.
    """
    numbers = []
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, alone) or alone
        if not (text.isascii() and text.isdecimal() and len(text) < 7):
            raise ConfigError(f"{name} is '{text}', but must be a whole number, as torchrun sets it")
        numbers.append(int(text))
    if numbers[1] > 1 and "RANK" not in os.environ:
        raise ConfigError("WORLD_SIZE is set, but RANK is not; start the processes by torchrun, or unset it")
    return Place(*numbers)


def is_silent() -> bool:
    """Whether another process tells what all have to tell."""
    return place().rank > 0


def name_of_process() -> str:
    """Which of several processes says something, to begin its line with; empty for a process of its own."""
    rank, size, _ = place()
    return f"process {rank} of {size}: " if size > 1 else ""


def check_command(command: str) -> None:
    """Raise ConfigError for a command that several processes cannot share: each would do all of it."""
    size = place().size
    if size > 1 and command not in SHARED:
        raise ConfigError(
            f"`dmlcore {command}` was started in {size} processes, but works in one; only {', '.join(SHARED)} can be shared"
        )


def restarts() -> int:
    """How often torchrun has started these processes again."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def join(device: str) -> None:
    """Join the other processes, if that has not been done.

    Args:
        device: its type. CUDA takes NCCL, everything else gloo.
    """
    from torch import distributed

    if not distributed.is_available():
        raise ConfigError("this PyTorch has no torch.distributed, so processes cannot train together")
    if distributed.is_initialized():
        return
    names: Any = distributed  # which its stubs leave out
    store, rank, size = next(names.rendezvous("env://", timeout=START))
    # a launcher may give processes that it starts again the store of those that died, with their addresses
    store = names.PrefixStore(f"dmlcore/{restarts()}", store)
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=START)


def words_of_a_process(words: Sequence[str]) -> list[str]:
    """The command of each of several processes: without the flags that start them."""
    left, rest = [], iter(words)
    for word in rest:
        if word.partition("=")[0] not in ("--processes", "--max-restarts"):
            left.append(word)
        elif "=" not in word:
            next(rest, None)
    return left


def start(count: int, words: Sequence[str], restarts: int, tell: Callable[[str], None]) -> int:
    """Run `dmlcore` in several processes on this machine, by torchrun's launcher, and wait for them.

    Args:
        count: of processes, >= 1.
        words: behind `dmlcore`.
        restarts: how often all are started again when one dies.
        tell: receives a line about a process that was killed.

    Returns:
        The exit status: of the process that failed first, or 0.
    """
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a process that fails says itself why, in a line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "dmlcore", *words)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode < 0:  # it could not say anything
            tell(f"process {rank} of {count} was ended by signal {-failure.exitcode}")
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0
