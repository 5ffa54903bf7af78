"""Losses against a memory of which each rank has a part.

Each rank multiplies the samples of all with its own entries. The products go to the ranks whose samples they are of, so that
each has the whole rows of its own samples, and computes the losses from these. Backward sends the slopes the same way back.
Samples are taken in blocks, so that no rank holds much more than its part of the entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError
from dmlcore.kernels import fused_passes
from dmlcore.losses.comparison import Comparison, compare
from dmlcore.losses.distances import unit
from dmlcore.losses.mining import WindowMiner
from dmlcore.losses.norms import NormLoss
from dmlcore.losses.path import Rows, fusion_of, is_fusable, pass_of
from dmlcore.losses.rows import RowLoss
from dmlcore.losses.streaming import budget
from dmlcore.ranks import Layout, gathered

MATRICES_FUSED = 3
"""Matrices of the size of the products that the kernels need beside them: what was sent, and the slopes."""


class DividedEntries(NamedTuple):
    """The entries of a memory, of which each rank has a part.

    Attributes:
        own: `[m, D]` those of this rank that are in use.
        sizes: how many each rank has of them.
        labels: of all M, one rank's behind another's.
        places: `[N]` int64, which of the M each sample of all ranks is, or -1. None: none is one.
    """

    own: Tensor
    sizes: tuple[int, ...]
    labels: Tensor
    places: Tensor | None


def looks_at_memory(loss: Any) -> bool:
    """Whether a loss compares samples with those of a memory. The others are called with the batch alone."""
    return loss.takes_references and not isinstance(loss, NormLoss)


def why_not_compared(loss: Any) -> str:
    """Why a loss cannot be compared with such a memory. Empty: it can, or does not look at one."""
    if not looks_at_memory(loss):
        return ""
    if not isinstance(loss, RowLoss) or not loss.by_rows:
        return "it is not defined by rows of similarities"
    if not loss.streams:
        return "its rows depend on one another"
    if any(True for _ in loss.parameters()):
        return "it has learnt numbers"
    if loss.needs_vectors or _changes_vectors(loss):
        return "it looks at the entries beyond their similarities"
    if loss.miner is not None and not (isinstance(loss.miner, WindowMiner) and loss.normalise == (True, True)):
        return f"its miner '{loss.miner.name}' looks at more than a row of cosines"
    return ""


def check_members(members: Sequence[Any]) -> None:
    """Raise for a loss that cannot be compared with a divided memory.

    Raises:
        ConfigError: there is one.
    """
    for loss in members:
        if reason := why_not_compared(loss):
            raise ConfigError(f"'{loss.name}' cannot compare samples with a divided memory: {reason}; leave shard_memory out")


def rows_against(
    losses: Sequence[RowLoss], comparisons: Sequence[Comparison], entries: DividedEntries, layout: Layout
) -> list[Rows]:
    """Values and counts of losses for the samples of all ranks, `[V, N]`, the same on every rank.

    Args:
        losses: that compare samples with the memory.
        comparisons: what each compares: the samples of all ranks, from `summed_rows`, with the entries of this rank.
        entries: of the memory.
        layout: whose the samples are.
    """
    sides: dict[Any, _Side] = {}
    members = []
    for loss, comparison in zip(losses, comparisons, strict=True):
        key = (id(comparison.anchors), id(comparison.references), loss.normalise)
        if key not in sides:
            sides[key] = _side(comparison, loss.normalise, len(sides))
        members.append(_Member(loss, comparison, sides[key].number))
    work = _Work(members, entries, layout, max(side.entries.shape[1] for side in sides.values()))
    tensors = [tensor for side in sides.values() for tensor in (side.anchors, side.entries)]
    values_and_counts = _AllRows.apply(work, *tensors)
    return [Rows(*pair) for pair in zip(values_and_counts[::2], values_and_counts[1::2], strict=True)]


class _Side(NamedTuple):
    """What is multiplied: the samples of all ranks `[N, D]` with the entries of this rank `[m, D]`."""

    number: int
    anchors: Tensor
    entries: Tensor


def _side(comparison: Comparison, normalise: tuple[bool, bool], number: int) -> _Side:
    compared = comparison.in_dtype()
    anchors, entries = compared.anchors, compared.other_vectors
    return _Side(number, unit(anchors) if normalise[0] else anchors, unit(entries) if normalise[1] else entries)


class _Member(NamedTuple):
    """A loss, what it compares, and which side has the products."""

    loss: RowLoss
    comparison: Comparison
    side: int


class _Work:
    """A call: what each rank computes of it, block after block of its samples."""

    def __init__(self, members: Sequence[_Member], entries: DividedEntries, layout: Layout, width: int) -> None:
        self.members, self.entries, self.layout = members, entries, layout
        dtype = members[0].comparison.dtype
        self.count = sum(entries.sizes)
        self.fused = {index: call for index, member in enumerate(members) if (call := self._call_of(member)) is not None}
        plain = [m.loss.plain_matrices(m.comparison) for index, m in enumerate(members) if index not in self.fused]
        row = self.count * dtype.itemsize * max([MATRICES_FUSED, *plain])
        part = -(-self.count // layout.group.size) * width * dtype.itemsize
        self.size = max(max(budget(), part) // max(row, 1), 1)  # the same on every rank
        self.starts = range(0, max(max(layout.sizes), 1), self.size)
        self.same: dict[int, Tensor] = {}

    def _call_of(self, member: _Member) -> Any:
        """The functor that computes a member from products alone, or None."""
        loss = member.loss
        fusion = fusion_of(loss, member.comparison.anchors.device.type)
        if fusion is None or fusion.couples or fusion.call.given is not None or fusion.call.cells or loss.miner is not None:
            return None
        is_plain = loss.completes or loss.rearranges or loss.reshapes or fusion.normalise != loss.normalise
        return None if is_plain or not is_fusable(loss, fusion, member.comparison) else fusion.call

    def block(self, rank: int, start: int) -> slice:
        """The samples of a rank in a block, among those of all."""
        sizes = self.layout.sizes
        first = sum(sizes[:rank])
        return slice(first + min(start, sizes[rank]), first + min(start + self.size, sizes[rank]))

    def products(self, number: int, start: int, anchors: Tensor, entries: Tensor) -> Tensor:
        """`[M, a]` the products of all entries with this rank's samples of a block. All ranks call it."""
        if number in self.same:
            return self.same[number]
        size, rank = self.layout.group.size, self.layout.rank
        blocks = [entries @ anchors[self.block(other, start)].T for other in range(size)]
        count = _length(self.block(rank, start))
        everything = self.layout.group.all_to_all(blocks, [entries * count for entries in self.entries.sizes])
        products = everything.view(self.count, count)
        if len(self.starts) == 1:  # then they are no larger than a block, and backward need not ask for them again
            self.same[number] = products
        return products

    def send_back(self, start: int, slopes: Tensor, entries: Tensor, of_anchors: Tensor) -> None:
        """Add what the slopes `[M, a]` of this rank's samples, and those of the others, mean for the samples `[N, D]`."""
        size = self.layout.group.size
        blocks = [self.block(rank, start) for rank in range(size)]
        parts = slopes.split(list(self.entries.sizes))
        lengths = [len(entries) * _length(block) for block in blocks]
        pieces = self.layout.group.all_to_all(parts, lengths).split(lengths)
        for block, piece in zip(blocks, pieces, strict=True):
            of_anchors[block].addmm_(piece.view(len(entries), _length(block)).T, entries)

    def rows(self, products: dict[int, Tensor], start: int, indices: Sequence[int]) -> dict[int, Rows]:
        """Values and counts of some members for this rank's samples of a block, `[V, a]`."""
        own = self.block(self.layout.rank, start)
        rows: dict[int, Rows] = {}
        of_passes: dict[tuple[int, Any], list[int]] = {}
        for index in indices:
            member = self.members[index]
            if index in self.fused:
                of_passes.setdefault((member.side, member.comparison.relation), []).append(index)
                continue
            rows[index] = member.loss.plain_rows(self._compared(member, products[member.side], own), stream=False)
        for (side, _), fused in of_passes.items():
            rows |= self._fused_rows(products[side], own, fused)
        return rows

    def _compared(self, member: _Member, products: Tensor, own: slice) -> Comparison:
        """What a definition gets: the products, and references without numbers."""
        compared, places = member.comparison, self.entries.places
        anchors = compared.anchors[own].detach().to(products.dtype)
        references = anchors.new_empty(self.count, 0)
        mining = compared.mining
        if mining is not None:
            mining = mining._replace(anchors=mining.anchors[own], references=references, first=own.start)
        return Comparison(
            anchors,
            compared.labels[own],
            references,
            self.entries.labels,
            own=None if places is None else places[own],
            relation=compared.relation,
            mining=mining,
            products=products.T,
        )

    def _fused_rows(self, products: Tensor, own: slice, indices: list[int]) -> dict[int, Rows]:
        """Kernels multiply vectors, so they get the products as the numbers of the entries, and an axis for each sample."""
        comparison, count = self._compared(self.members[indices[0]], products, own), products.shape[1]
        axes = torch.eye(count, max(count, 1), dtype=products.dtype, device=products.device)
        columns = products if count else products.new_zeros(self.count, 1)
        comparison = comparison._replace(anchors=axes, references=columns, products=None).with_positives()
        calls = [self.fused[index] for index in indices]
        values, counts, _ = fused_passes([pass_of(comparison, calls, (False, False))]).of(0)
        rows, first = {}, 0
        for index in indices:
            fusion = fusion_of(self.members[index].loss, products.device.type)
            assert fusion is not None
            rows[index] = Rows(values[first : first + fusion.values], counts[first : first + fusion.values])
            first += fusion.values
        return rows


class _AllRows(torch.autograd.Function):
    """Values and counts of each member. Backward has a part of the gradient at the samples of all ranks on each of them."""

    @staticmethod
    def forward(ctx: Any, work: _Work, *sides: Tensor) -> tuple[Tensor, ...]:
        ctx.work = work
        ctx.save_for_backward(*sides)  # autograd notices when the memory is changed before backward
        ctx.set_materialize_grads(False)
        indices = range(len(work.members))
        parts: list[dict[int, Rows]] = []
        for start in work.starts:
            products = {n: work.products(n, start, *sides[2 * n : 2 * n + 2]) for n in range(len(sides) // 2)}
            parts.append(work.rows(products, start, indices))
        wholes = [torch.cat([part[index][side] for part in parts], 1) for index in indices for side in (0, 1)]  # [V, B]
        own = [torch.stack(whole.unbind(), 1) for whole in wholes]
        rows = [tensor.T.contiguous() for tensor in gathered(own, work.layout)]
        ctx.mark_non_differentiable(*rows[1::2])
        return tuple(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        work, tensors = ctx.work, ctx.saved_tensors
        sides = list(zip(tensors[::2], tensors[1::2], strict=True))
        indices = [index for index, cotangent in enumerate(cotangents[::2]) if cotangent is not None]
        numbers = sorted({work.members[index].side for index in indices})
        gradients: dict[int, Tensor] = {number: torch.zeros_like(sides[number][0]) for number in numbers}
        for start in work.starts:
            leaves = {n: work.products(n, start, *sides[n]).detach().requires_grad_() for n in numbers}
            own = work.block(work.layout.rank, start)
            with torch.enable_grad():
                rows = work.rows(leaves, start, indices)
            slopes: Sequence[Tensor | None] = [None] * len(numbers)
            learnt = [index for index in indices if rows[index].values.requires_grad]
            if learnt:
                values = [rows[index].values for index in learnt]
                weights = [cotangent[:, own] for i in learnt if (cotangent := cotangents[2 * i]) is not None]
                slopes = torch.autograd.grad(values, list(leaves.values()), weights, allow_unused=True)
            for number, slope in zip(numbers, slopes, strict=True):
                slope = torch.zeros_like(leaves[number]) if slope is None else slope
                work.send_back(start, slope, sides[number][1], gradients[number])
        of_sides: list[Tensor | None] = []
        for number in range(len(sides)):
            of_sides += [gradients.get(number), None]
        return None, *of_sides


def _length(block: slice) -> int:
    return block.stop - block.start


def _changes_vectors(loss: RowLoss) -> bool:
    """Whether a loss compares something else than it is called with."""
    if not loss.reshapes:
        return False
    vectors, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    comparison = compare(vectors, labels, references=vectors, reference_labels=labels)
    return loss.reshaped(comparison) is not comparison
