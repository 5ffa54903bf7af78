"""What `test_board.py` runs on several ranks: the same exchanges through memory that they share and over sockets."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from launched import as_rank
from torch import Tensor, distributed

import dmlcore.kernels  # noqa: F401  loads the extension
from dmlcore.ranks import Group

LARGE = 700_001
"""Numbers that need several rounds, and do not end with one."""


def exchanged(group: Group) -> list[Tensor]:
    """What a rank gets of every kind of exchange."""
    rank, size = group.rank, group.size
    draws = torch.Generator().manual_seed(rank)
    rows = torch.randn(5 * rank, 7, generator=draws)  # the first has none
    labels = torch.arange(len(rows)) + 100 * rank
    results = group.gather([rows, labels, labels.bool()], [5 * r for r in range(size)])
    for count in (1, LARGE):
        numbers = torch.randn(size * count, 2, generator=draws, dtype=torch.float64)
        results += [group.all_gather(numbers[:count]), group.reduce_scatter(numbers), group.reduce_scatter(numbers.float())]
    blocks = [torch.randn((rank + 1) * other * 1000, generator=draws) for other in range(size)]
    blocks[-1] = torch.randn((rank + 1) * LARGE, generator=draws)
    last = rank == size - 1
    sizes = [(r + 1) * (LARGE if last else rank * 1000) for r in range(size)]
    return [*results, group.all_to_all(blocks, sizes), group.add_up(torch.randn(3, generator=draws, dtype=torch.float64))]


def seconds_until_refused(act: Callable[[], Any]) -> tuple[float, str]:
    began = time.perf_counter()
    try:
        act()
    except RuntimeError as error:
        return time.perf_counter() - began, str(error)
    return time.perf_counter() - began, "nothing was refused"


def main(rank: int, size: int, folder: Path) -> None:
    with as_rank(rank, size, folder) as outcome:
        shared, patient = Group(), Group(distributed.new_group(timeout=timedelta(seconds=1)))
        os.environ["DML_SHARED_MEMORY"] = "0"
        sockets = Group(distributed.new_group())
        outcome["sockets"] = exchanged(sockets)
        assert sockets.board_for(torch.device("cpu")) is None
        del os.environ["DML_SHARED_MEMORY"]
        outcome["shared"] = exchanged(shared)
        assert shared.board_for(torch.device("cpu")) is not None and patient.board_for(torch.device("cpu")) is not None
        if rank == 0:
            time.sleep(1.6)
        outcome["late"] = seconds_until_refused(lambda: patient.all_gather(torch.zeros(1)))
        distributed.barrier()
        other = Group(distributed.new_group())
        outcome["other"] = seconds_until_refused(lambda: other.all_gather(torch.zeros(1 + (rank == 1))))
        distributed.barrier()
        if rank == size - 1:  # it ends without a word
            torch.save(outcome, folder / f"{rank}.pt")
            os._exit(0)
        outcome["ended"] = seconds_until_refused(lambda: shared.all_gather(torch.zeros(1)))
        torch.save(outcome, folder / f"{rank}.pt")
        os._exit(0)  # the others cannot leave the process group together any more


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
