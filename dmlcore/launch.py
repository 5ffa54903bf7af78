"""How a process learns that it is one of several, and joins the others; and starting several on this machine.

`torchrun` sets `RANK`, `WORLD_SIZE` and `LOCAL_RANK`, as `accelerate launch` does. Where they are not set, the variables count
that Slurm's `srun` gives each task of a step. The script of `sbatch` has none of these, so it is a process of its own.
"""

from __future__ import annotations

import atexit
import datetime
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dmlcore.errors import ConfigError, TrainingError, first_line
from dmlcore.interruption import unhandled
from dmlcore.meeting import met

START = datetime.timedelta(minutes=30)
"""How long processes wait for the slowest to start and to open its data."""

OF_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""What `srun` calls the variables of `torchrun`."""

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
    numbers, is_step = [], _is_step()
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        name = OF_SLURM[name] if is_step else name
        text = os.environ.get(name, alone) or alone
        if not (text.isascii() and text.isdecimal() and len(text) < 7):
            launcher = "srun" if is_step else "torchrun"
            raise ConfigError(f"{name} is '{text}', but must be a whole number, as {launcher} sets it")
        numbers.append(int(text))
    if numbers[1] > 1 and "RANK" not in os.environ and not is_step:
        raise ConfigError("WORLD_SIZE is set, but RANK is not; start the processes by torchrun, or unset it")
    return Place(*numbers)


def _is_step() -> bool:
    """Whether Slurm alone has started this process, as a task of a step of several."""
    return (
        not any(name in os.environ for name in ("RANK", "WORLD_SIZE"))
        and "SLURM_PROCID" in os.environ
        and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    )


def _meet_by_slurm() -> None:
    """Set the variables of `torchrun` for a task of Slurm. The processes meet at the first host of the step."""
    rank, size, local_rank = place()
    job = os.environ.get("SLURM_JOB_ID", "0")
    step = os.environ.get("SLURM_STEP_ID", "0")
    # the same for all tasks, and rarely the same for two jobs on a machine
    port = 20_000 + (int(job) * 31 + int(step)) % 10_000 if job.isdecimal() and step.isdecimal() else 20_000
    os.environ.setdefault("MASTER_ADDR", first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost")))
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank)}


def first_host(hosts: str) -> str:
    """The first of a list of hosts as Slurm writes it: `node03` of `node[03-05,09],other`."""
    name = re.split(r",(?![^\[]*\])", hosts)[0]  # not the commas within brackets
    return re.sub(r"\[([^\]]*)\]", lambda ranges: re.split("[-,]", ranges[1])[0], name)


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

    Raises:
        ConfigError: this PyTorch has no torch.distributed.
        TrainingError: some of the processes have not started, or cannot reach the others.
    """
    from torch import distributed

    if not distributed.is_available():
        raise ConfigError("this PyTorch has no torch.distributed, so processes cannot train together")
    if distributed.is_initialized():
        return
    if _is_step():
        _meet_by_slurm()
    names: Any = distributed  # which its stubs leave out
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        with unhandled():
            store, rank, size = next(names.rendezvous("env://", timeout=START))
            # a launcher may give processes that it starts again the store of those that died, with their addresses
            name = met(names.PrefixStore("dmlcore", store), rank, size, START)
            store = names.PrefixStore(f"dmlcore/{name}", store)
            distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=START)
    except RuntimeError as error:  # such as those of a store or a connection
        raise TrainingError(f"the processes cannot meet ({first_line(error)})") from None
    # What holds a group is often part of a cycle. gloo's threads end with the group, and must while they may still take the
    # interpreter's lock: one that asks for it later ends the process by abort().
    atexit.register(gc.collect)


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
