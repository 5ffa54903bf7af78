"""Which rows of the whole batch are which rank's, and that all ranks speak of the same batch."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from dmlcore.errors import ConfigError, DmlcoreError, TrainingError
from dmlcore.ranks.group import Group


@dataclass(frozen=True)
class Layout:
    """The rows of the ranks, one rank's behind another's.

    Attributes:
        group: of the ranks.
        rank: this one.
        sizes: rows of each rank, which may be 0.
    """

    group: Group
    rank: int
    sizes: tuple[int, ...]

    @property
    def first(self) -> int:
        """The first row of this rank."""
        return sum(self.sizes[: self.rank])

    @property
    def count(self) -> int:
        """Rows of this rank."""
        return self.sizes[self.rank]

    @property
    def own(self) -> slice:
        """The rows of this rank."""
        return slice(self.first, self.first + self.count)


def exchange(
    group: Group, counts: tuple[int, ...], form: str, device: torch.device, error: DmlcoreError | None = None
) -> list[Layout]:
    """Tell the other ranks how many rows this one has, and hear theirs. All ranks call it, or none.

    Args:
        group: of the ranks.
        counts: rows of each tensor that will be gathered.
        form: what must be the same on all ranks, in words.
        device: that the group's backend can send from.
        error: why this rank cannot take part; then all ranks raise.

    Returns:
        A layout for each of `counts`.

    Raises:
        ConfigError: a rank refuses its batch, or its form is another.
        TrainingError: the ranks are at different steps.
    """
    return meet(group, (), counts, form, device, error)[0]


def meet(
    group: Group,
    tensors: Sequence[Tensor],
    counts: tuple[int, ...],
    form: str,
    device: torch.device,
    error: DmlcoreError | None = None,
    *,
    agrees: bool = False,
) -> tuple[list[Layout], bool]:
    """As `exchange`, and rows may come with it.

    Args:
        group, counts, form, device, error: as `exchange` takes them.
        tensors: contiguous `[B, ...]` each, for `Group.met`. The form says all of them but B.
        agrees: whether this rank would go a way that all must go.

    Returns:
        A layout for each of `counts`, and whether all ranks agree.
    """
    step = -1 if group.step is None else group.step
    words = (int(error is not None), step, _checksum(form), int(agrees), *counts)
    failed, steps, forms, agreeing, *sizes = zip(*group.meet(words, tensors, device), strict=True)
    if any(failed):
        if error is not None:
            raise error
        raise ConfigError(f"rank {failed.index(1)} refused its batch; its own message says why")
    if len(set(steps)) > 1:
        raise TrainingError(f"the ranks are at different steps: {list(steps)}; rank {steps.index(min(steps))} left some out")
    if len(set(forms)) > 1:
        texts: list[str] = [""] * group.size
        distributed.all_gather_object(texts, form, group=group.process_group)
        other = next(rank for rank, number in enumerate(forms) if number != forms[0])
        raise ConfigError(f"the ranks' batches do not fit together: rank 0 has {texts[0]}, but rank {other} has {texts[other]}")
    rank = group.rank
    return [Layout(group, rank, numbers) for numbers in sizes[: len(counts)]], all(agreeing)


@functools.lru_cache(maxsize=64)
def _checksum(form: str) -> int:
    return zlib.crc32(form.encode())
