"""Work on a data set that the ranks divide among them: embedding it, and going through what all ranks hold."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from dmlcore.errors import AnotherFailed, DmlcoreError, of_all
from dmlcore.ranks.current import CurrentGroup
from dmlcore.ranks.group import Group
from dmlcore.ranks.layout import Layout
from dmlcore.ranks.operators import gathered

T = TypeVar("T")

_current = CurrentGroup()


def divided(group: Group | None) -> contextlib.AbstractContextManager[None]:
    """Inside the block work that can be divided is, among all ranks, which all enter it. None: it is not."""
    return _current.within(group)


def dividing() -> Group | None:
    """The ranks that divide the work now."""
    return _current.group


def share_of(count: int, rank: int, size: int) -> range:
    """The part of `count` things that is one rank's. The parts follow one another."""
    return range(count * rank // size, count * (rank + 1) // size)


@dataclass(frozen=True)
class DividedRows:
    """A matrix `[N, ...]` of which every rank holds some rows, one rank's behind another's.

    Attributes:
        own: `[n, ...]` the rows of this rank.
        layout: whose the rows are.
    """

    own: Tensor
    layout: Layout

    def __len__(self) -> int:
        return sum(self.layout.sizes)

    def whole(self) -> Tensor:
        """All rows, on every rank."""
        return gathered([self.own], self.layout)[0]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> DividedRows:
        """What a function makes of the rows `[n, ...]` of each rank, one row of each."""
        return DividedRows(function(self.own), self.layout)

    def on_first(self) -> Tensor | None:
        """All rows on rank 0, and None on the others. All ranks call it."""
        layout = self.layout
        padded = self.own.new_zeros(max(layout.sizes), *self.own.shape[1:])
        padded[: layout.count] = self.own
        pieces = [torch.empty_like(padded) for _ in layout.sizes] if layout.rank == 0 else None
        distributed.gather(padded, pieces, layout.group.global_rank(0), group=layout.group.process_group)
        if pieces is None:
            return None
        return torch.cat([piece[:size] for piece, size in zip(pieces, layout.sizes, strict=True)])

    def select(self, positions: np.ndarray) -> DividedRows:
        """Some rows, by their places in ascending order."""
        bounds = np.searchsorted(positions, np.cumsum((0, *self.layout.sizes)))
        own = positions[bounds[self.layout.rank] : bounds[self.layout.rank + 1]] - self.layout.first
        layout = Layout(self.layout.group, self.layout.rank, tuple(np.diff(bounds).tolist()))
        return DividedRows(self.own[torch.from_numpy(own).to(self.own.device)], layout)

    def around(self) -> Iterator[tuple[int, Tensor]]:
        """The rows of every rank in turn and whose they are, this rank's first. Each rank hands on to the next what it has, so
        that no rank holds more than three parts. All ranks must take all parts."""
        layout, group, here = self.layout, self.layout.group, self.own.contiguous()
        size, rank = group.size, layout.rank
        before, after = (group.global_rank((rank + step) % size) for step in (-1, 1))
        for hop in range(size):
            owner = (rank - hop) % size
            coming, transfers = here, []
            if hop + 1 < size:
                coming = here.new_empty(layout.sizes[owner - 1], *here.shape[1:])
                calls = [(distributed.isend, here, after), (distributed.irecv, coming, before)]
                pairs = [distributed.P2POp(call, rows, peer, group.process_group) for call, rows, peer in calls if len(rows)]
                transfers = distributed.batch_isend_irecv(pairs) if pairs else []
            yield owner, here
            for transfer in transfers:
                transfer.wait()
            here = coming


def rows_of_ranks(count: int, rows_between: Callable[[int, int], Tensor], piece: int = 1) -> Tensor | DividedRows:
    """The rows of a matrix `[N, ...]`, of which each rank computes a part where ranks divide the work.

    Args:
        count: N.
        rows_between: gives the rows of a range, which may be empty.
        piece: rows that are computed together, so that every number is that of one process to the last bit.
    """
    if (group := dividing()) is None:
        return rows_between(0, count)
    pieces = -(-count // piece)
    bounds = [min(share_of(pieces, rank, group.size).start * piece, count) for rank in range(group.size)] + [count]
    own = rows_between(bounds[group.rank], bounds[group.rank + 1])
    return DividedRows(own, Layout(group, group.rank, tuple(stop - start for start, stop in itertools.pairwise(bounds))))


def told_by_first(group: Group, act: Callable[[], T]) -> T:
    """What a function gives on rank 0, told to all. An error of dmlcore is raised by all.

    Args:
        group: of the ranks, which all call this.
        act: called by rank 0 alone. What it gives can be pickled.
    """
    outcome: list[T | DmlcoreError | None] = [None]
    if group.rank == 0:
        try:
            outcome = [act()]
        except DmlcoreError as error:
            outcome = [of_all(error)]
    distributed.broadcast_object_list(outcome, group.global_rank(0), group=group.process_group)
    if isinstance(outcome[0], DmlcoreError):
        raise of_all(outcome[0])
    return outcome[0]  # type: ignore[return-value]


@contextlib.contextmanager
def agreeing(group: Group | None) -> Iterator[None]:
    """Let all ranks come through the block, or none: a mistake that all have made is told once.

    Raises:
        AnotherFailed: another rank has not come through.
    """
    error: DmlcoreError | None = None
    try:
        yield
    except DmlcoreError as caught:
        if group is None:
            raise
        error = caught
    if group is None:
        return
    told: list[tuple[str, int] | None] = [None] * group.size
    own = None if error is None else (str(error), error.exit_status)
    distributed.all_gather_object(told, own, group=group.process_group)
    if error is not None:
        raise of_all(error) if len(set(told)) == 1 else error
    for rank, failure in enumerate(told):
        if failure is not None:
            text = f"process {rank} of {group.size} could not go on; its own message says why"
            raise AnotherFailed(text, exit_status=failure[1])
