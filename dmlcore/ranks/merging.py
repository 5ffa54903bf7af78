"""Log-sums over the classes of every rank, merged to log-sums over all classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from dmlcore.ranks.group import Group


class _Merged(torch.autograd.Function):
    """The maximum and the sum over ranks. All ranks go on with the same numbers, so the gradient of a rank's log-sum is its
    share of the whole sum, and nothing is sent in backward."""

    @staticmethod
    def forward(ctx: Any, log_sums: Tensor, numbers: Tensor, entered: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        highest = log_sums.detach().clone()
        distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=group.process_group)
        shares = torch.exp(log_sums - highest)
        sums = torch.cat([shares[None], numbers])
        distributed.all_reduce(sums, group=group.process_group)
        ctx.save_for_backward(shares / sums[0])
        ctx.entered = entered
        return highest + torch.log(sums[0]), sums[1:].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_sums: Tensor, of_numbers: Tensor) -> tuple[Tensor | None, ...]:
        # a rank without classes must come to the reduce-scatter too
        (shares,) = ctx.saved_tensors
        return of_log_sums * shares, of_numbers, torch.zeros_like(ctx.entered), None


def merged(log_sums: Tensor, numbers: Tensor, entered: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Log-sums over the parts of all ranks, and sums of other numbers, by two all-reduces.

    Args:
        log_sums: `[N]` float64, of this rank's part.
        numbers: `[M, N]` float64, which are added up.
        entered: from `summed_rows`: backward reaches it on every rank, whatever the others depend on.
        group: of the ranks.
    """
    return _Merged.apply(log_sums, numbers, entered, group)
