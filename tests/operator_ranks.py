"""What `test_rank_operators.py` runs on two ranks: derivatives of what crosses between them, and steps that end badly."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from launched import as_rank
from torch import Tensor, distributed

import dmlcore
from dmlcore.ranks import Group
from dmlcore.ranks.layout import Layout
from dmlcore.ranks.operators import gathered, summed_rows, total, whole

WIDTH, STEP = 3, 1e-6


def value_of(rows: Tensor, layout: Layout) -> Tensor:
    """One number of all rows: a part that every rank computes alike, and a part that they divide."""
    everything = whole(rows, gathered([rows], layout)[0], layout)
    alike = (everything.sin() * torch.arange(1.0, 1 + everything.numel()).view_as(everything)).sum()
    entered = summed_rows(everything, layout)
    own = (entered.cos() @ entered.T).square().sum() * (1 + layout.rank)
    sums, _ = total(own[None], own.new_ones(1), entered, layout.group)
    return alike + sums[0]


def derivatives(group: Group, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Of that number at this rank's rows `[B, WIDTH]`: by backward, and by differences, for which all ranks take every step."""
    layout = Layout(group, group.rank, sizes)
    draws = torch.Generator().manual_seed(1 + layout.rank)
    rows = torch.randn(layout.count, WIDTH, generator=draws, dtype=torch.float64)
    leaf = rows.clone().requires_grad_()
    value = value_of(leaf, layout)
    if value.requires_grad:
        value.backward()
    moved = torch.zeros(sum(sizes), WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for place in range(moved.numel()):
            ends = []
            for sign in (1, -1):
                shift = torch.zeros_like(moved)
                shift.view(-1)[place] = sign * STEP
                ends.append(value_of(rows + shift[layout.own], layout))
            moved.view(-1)[place] = (ends[0] - ends[1]) / (2 * STEP)
    by_backward = torch.zeros_like(rows) if leaf.grad is None else leaf.grad / group.factor
    return by_backward, moved[layout.own]


def step_of(ensemble: dmlcore.LossEnsemble, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of a rank, and the value of its batch."""
    draws = torch.Generator().manual_seed(10 * seed + rank)
    rows = torch.randn(12, 8, generator=draws, dtype=torch.float64).requires_grad_()
    return rows, ensemble(rows, torch.arange(12) // 3)


def of_error(act: Callable[[], Any]) -> tuple[float, str]:
    began = time.perf_counter()
    try:
        act()
    except Exception as error:
        return time.perf_counter() - began, f"{type(error).__name__}: {error}"
    return time.perf_counter() - began, ""


def main(rank: int, size: int, folder: Path) -> None:
    with as_rank(rank, size, folder) as outcome:
        group = Group()
        outcome["derivatives"] = {sizes: derivatives(group, sizes) for sizes in ((2, 3), (4, 0), (0, 1), (0, 0))}

        breaking = dmlcore.LossEnsemble(["ms"], group=Group(distributed.new_group(), work="divided"))
        for seed in range(2):
            step_of(breaking, rank, seed)[1].backward()
        if rank == 1:  # in the middle of a step, when the ranks have met
            no_room = mock.Mock(side_effect=MemoryError("no room"))
            breaking._last.again.passes = SimpleNamespace(divide=no_room)
        outcome["broken"] = of_error(lambda: step_of(breaking, rank, 2)[1].backward())

        ensemble = dmlcore.LossEnsemble(["ms"], group=Group(distributed.new_group(), work="divided"))
        for seed in range(2):
            step_of(ensemble, rank, seed)[1].backward()
        rows, value = step_of(ensemble, rank, 2)
        expected = torch.autograd.grad(value, rows, retain_graph=True)[0]
        distributed.barrier()
        distributed.destroy_process_group()
        outcome["destroyed"] = of_error(value.backward)[1]
        outcome["same"] = rows.grad is None or torch.equal(rows.grad, expected)
        torch.save(outcome, folder / f"{rank}.pt")
        os._exit(0)  # there is no process group any more to leave together


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
