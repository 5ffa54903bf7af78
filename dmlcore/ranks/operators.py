"""What crosses between ranks in a step, forward and backward.

Of what every rank computes whole, each takes its own rows of the gradient, and nothing is sent. Of what ranks divide, each has
a part of the gradient at all rows, which a reduce-scatter adds up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dmlcore.errors import ConfigError
from dmlcore.ranks.group import Group
from dmlcore.ranks.layout import Layout

ALIKE = 1e-3
"""Relative difference below which numbers of two ranks are the same numbers: they compute them from the same bits."""


@torch.no_grad()
def gathered(tensors: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """The rows of all ranks, by one exchange.

    Args:
        tensors: `[B, ...]` each, with the rows of `layout`. All but the first dimension are the same on all ranks.

    Returns:
        `[N, ...]` each, without history.
    """
    return layout.group.gather([tensor.detach().contiguous() for tensor in tensors], layout.sizes)


def gathered_embeddings(embeddings: Tensor, layout: Layout, *others: Tensor) -> list[Tensor]:
    """As `gathered`, for embeddings `[B, D]` and what goes with them. The group's `transport` may round the embeddings."""
    everything, *rest = gathered([layout.group.sent(embeddings.detach()), *others], layout)
    return [everything.to(embeddings.dtype), *rest]


class _Whole(torch.autograd.Function):
    """All rows in forward. In backward this rank's rows of the gradient, which is complete on every rank."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, everything: list[Tensor], layout: Layout) -> Tensor:
        ctx.layout = layout
        return everything.pop()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own, factor = gradient[ctx.layout.own], ctx.layout.group.factor
        return own if factor == 1 else own * factor, None, None


def whole(rows: Tensor, everything: Tensor, layout: Layout) -> Tensor:
    """The rows of all ranks as a function of this rank's.

    The gradient at all rows must be computed alike by every rank. What comes back is this rank's part of it, times what the
    group's engine divides by.

    Args:
        rows: `[B, D]` of this rank.
        everything: `[N, D]` from `gathered`.
        layout: which rows are whose.
    """
    return _Whole.apply(rows, [everything], layout) if rows.requires_grad and torch.is_grad_enabled() else everything


class _SummedRows(torch.autograd.Function):
    """All rows as they are in forward. In backward every rank has a part of the gradient at all rows: it gets the sum of these
    for its own rows, by a reduce-scatter, and nothing for the others, which nobody looks at."""

    @staticmethod
    def forward(ctx: Any, everything: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return everything.view_as(everything)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout, rows = ctx.layout, gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
        most = max(layout.sizes)
        if set(layout.sizes) != {most}:
            parts = rows.split(list(layout.sizes))
            rows = torch.cat([torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])]) for part in parts])
        own = layout.group.reduce_scatter(rows)[: layout.count]
        whole = torch.zeros_like(gradient)
        whole[layout.own] = own.to(gradient.dtype)
        return whole, None


def summed_rows(everything: Tensor, layout: Layout) -> Tensor:
    """The rows of all ranks, for what each rank computes a part of.

    Args:
        everything: `[N, D]` from `whole`.
        layout: which rows are whose.
    """
    return _SummedRows.apply(everything, layout)


class _Total(torch.autograd.Function):
    """Sums over all ranks, which every rank goes on with alike: the gradient is as it is."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, numbers: Tensor, entered: Tensor | None, group: Group) -> tuple[Tensor, Tensor]:
        ctx.entered = entered
        values = group.add_up(torch.cat([sums.detach(), numbers]))
        sums, numbers = values[: len(sums)].clone(), values[len(sums) :].clone()
        ctx.mark_non_differentiable(numbers)
        return sums, numbers

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # a rank without samples must come to the reduce-scatter too
        return gradient, None, None if ctx.entered is None else torch.zeros_like(ctx.entered), None


def total(sums: Tensor, numbers: Tensor, entered: Tensor | None, group: Group) -> tuple[Tensor, Tensor]:
    """Sums over all ranks of differentiable numbers and of others, by one all-reduce.

    Args:
        sums: `[S]` float64, of this rank.
        numbers: `[M]` float64, without history.
        entered: from `summed_rows`: backward reaches it on every rank, whatever `sums` depend on. None: it does so anyway.
        group: of the ranks.
    """
    return _Total.apply(sums, numbers, entered, group)


@torch.no_grad()
def summed(values: Tensor, group: Group) -> Tensor:
    """The sum over all ranks."""
    return group.add_up(values.detach().clone())


class _Replaced(torch.autograd.Function):
    """Other numbers in forward, the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, others: list[Tensor]) -> Tensor:
        return others.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def agreed(values: Tensor, names: Sequence[str], group: Group) -> Tensor:
    """Numbers that every rank has computed from the same bits, made the same to the last bit: those of rank 0.

    Args:
        values: `[L]`.
        names: of the numbers.
        group: of the ranks.

    Raises:
        ConfigError: on the CPU, where a number differs by more than rounding. On other devices the host would wait.
    """
    table = group.all_gather(values.detach()[None])  # [W, L]
    first = table[0].clone()
    if values.device.type == "cpu":
        apart = (table - first).abs() > ALIKE * first.abs()
        if bool(apart.any()):
            rank, index = apart.nonzero()[0].tolist()
            raise ConfigError(
                f"'{names[index]}' is {table[rank, index].item():.6g} on rank {rank}, but {first[index].item():.6g} on rank 0,"
                " for the same batch; a loss that draws must draw by a seed of its own, and its parameters must agree"
            )
    return _Replaced.apply(values, [first]) if values.requires_grad else first


@torch.no_grad()
def first_of(values: Tensor, group: Group) -> Tensor:
    """The numbers of rank 0, where each rank has drawn some.

    Args:
        values: `[L]`.
        group: of the ranks.
    """
    return group.all_gather(values[None])[0].clone()


@torch.no_grad()
def same_everywhere(module: nn.Module, form: str, group: Group, device: torch.device, except_for: Collection[str] = ()) -> None:
    """Give all ranks the parameters and buffers of rank 0.

    Args:
        module: the same on all ranks, but for the numbers in it.
        form: what must be the same beside it, in words.
        group: of the ranks.
        device: that the group's backend can send from.
        except_for: names of what each rank has for itself.

    Raises:
        ConfigError: the modules differ.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: tensor for name, tensor in state.items() if name not in except_for}
    own = [form, *(f"{name} {list(tensor.shape)} of {tensor.dtype}" for name, tensor in sorted(state.items()))]
    lists: list[Any] = [None] * group.size
    distributed.all_gather_object(lists, own, group=group.process_group)
    for rank, other in enumerate(lists):
        if other != lists[0]:
            here, there = next(((a, b) for a, b in zip(lists[0], other, strict=False) if a != b), ("more", "less"))
            raise ConfigError(f"rank {rank} has another loss than rank 0: {there} instead of {here}")
    for _, tensor in sorted(state.items()):
        numbers = tensor.detach().to(device).contiguous()
        source = 0 if group.process_group is None else distributed.get_global_rank(group.process_group, 0)
        distributed.broadcast(numbers, source, group=group.process_group)
        tensor.copy_(numbers)
