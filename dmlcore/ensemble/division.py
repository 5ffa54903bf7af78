"""Losses whose work several ranks divide. Each pair of samples is compared by one rank, where what ranks find can be merged.
Elsewhere a rank computes the rows of its own samples against the samples of all. Of a loss whose classes are divided it
computes what its own classes give the samples of all.

The rows of a loss are divided if they do not depend on one another and it has no parameters. All others are computed whole by
every rank. All ways are exact. For small batches dividing costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlcore.ensemble.columns import Columns, Heads
from dmlcore.ensemble.divided_again import WORTH
from dmlcore.losses import Comparison, Loss, ProxyLoss, RowLoss, Rows
from dmlcore.losses.divided_memory import DividedEntries, looks_at_memory, rows_against
from dmlcore.losses.path import Fusion, Outcome, compared, fusion_of
from dmlcore.losses.shards import merged_values
from dmlcore.losses.tiles import fusion_by_tiles, terms_by_tiles
from dmlcore.ranks import Layout, summed_rows, total


class Division:
    """One call whose members are divided among ranks.

    Args:
        members: of the ensemble.
        columns: that they see.
        comparison: of the samples of all ranks.
        layout: which samples are whose.
        entries: of a divided memory, which the samples are compared with instead of one another; or None.

    Attributes:
        indices: of the members whose rows are divided among samples, or among proxies.
        of_tiles: the fused forms of the members whose pairs are divided, by index.
        summed: of the members whose values are merged from sums over classes.
        active: shares of samples with a value above 0 of the members that are divided, by index, after `terms`.
        all_terms: `[L]` after `terms`, where the pairs of all members are divided.
        of_entries: of the members that compare the samples with a divided memory.
    """

    def __init__(
        self,
        members: Sequence[Loss],
        columns: Columns | None,
        comparison: Comparison,
        layout: Layout,
        entries: DividedEntries | None = None,
    ) -> None:
        self.members = members
        self.layout = layout
        self.indices = [index for index, loss in enumerate(members) if _is_divided(loss, comparison)]
        self.of_tiles: dict[int, Fusion] = {}
        self.active: dict[int, Tensor] = {}
        self.all_terms: Tensor | None = None
        size = len(comparison.anchors) * len(comparison.other_vectors) * comparison.anchors.shape[1]
        if layout.group.work == "whole" or (layout.group.work == "auto" and size < WORTH):
            self.indices = []
        elif comparison.references is None and entries is None:
            self.of_tiles = self._merging(columns, comparison)
        if comparison.references is not None and comparison.references.requires_grad:
            self.indices = []  # their gradient would be parted too; entries of a memory have none
        self.entries = entries
        self.of_entries = [] if entries is None else [i for i, loss in enumerate(members) if looks_at_memory(loss)]
        if entries is not None:
            self.indices = []
            comparison = comparison._replace(references=entries.own)
        shards = [index for index, loss in enumerate(members) if isinstance(loss, ProxyLoss) and loss.shard is not None]
        self.summed = [index for index in shards if getattr(members[index], "divides", None) == "sums"]
        self.of_proxies = [index for index in shards if index not in self.summed]
        self.indices = [index for index in self.indices if index not in self.of_tiles] + self.of_proxies
        if not (self.indices or self.of_tiles or self.summed or self.of_entries):
            return
        self.anchors = summed_rows(comparison.anchors, layout)
        self.comparison = comparison._replace(anchors=self.anchors)
        self.heads = None if columns is None else Heads(columns, self.comparison)
        self._parts: dict[int, Tensor] = {}

    def _merging(self, columns: Columns | None, comparison: Comparison) -> dict[int, Fusion]:
        """The members whose pairs are divided. Where another shares their pass that needs rows, they go with it: comparing
        twice would cost more."""
        heads = None if columns is None else Heads(columns, comparison)
        views = [comparison if heads is None or not loss.by_rows else heads.view(i) for i, loss in enumerate(self.members)]
        fusions = [fusion_by_tiles(loss, view) for loss, view in zip(self.members, views, strict=True)]
        rows = []
        for index in self.indices:
            loss: Any = self.members[index]
            fusion = fusion_of(loss, comparison.anchors.device.type)
            if fusions[index] is None and fusion is not None and loss.miner is None:
                rows.append((views[index].anchors, fusion.normalise))
        merging = {}
        for index, fusion in enumerate(fusions):
            if fusion is None:
                continue
            is_shared = any(anchors is views[index].anchors and fusion.normalise == other for anchors, other in rows)
            if index not in self.indices or not is_shared:
                merging[index] = fusion
        return merging

    def view(self, index: int, *, advance: bool) -> Comparison:
        """What a member that is divided compares: the samples of this rank with those of all, or with a memory; or its proxies
        of this rank with the samples of all."""
        loss: Any = self.members[index]
        if index in self.of_proxies:
            return compared(loss, self._samples(index), advance=advance)
        whole = compared(loss, self.comparison if self.heads is None else self.heads.view(index), advance=advance)
        own = self.layout.own
        part = whole.part(own.start, own.stop)
        # members share a pass by the identity of their tensors
        return part._replace(anchors=self._parts.setdefault(id(whole.anchors), part.anchors))

    def computes(self, index: int) -> bool:
        """Whether the rows of a member come from `rows_of_entries`, or its value from its tiles."""
        return index in self.of_entries or index in self.of_tiles

    def rows_of_entries(self, *, advance: bool) -> dict[int, Rows]:
        """Values and counts of the members that compare the samples with a divided memory, for the samples of all ranks."""
        if self.entries is None or not self.of_entries:
            return {}
        losses: list[Any] = [self.members[index] for index in self.of_entries]
        views = [self.comparison if self.heads is None else self.heads.view(index) for index in self.of_entries]
        comparisons = [compared(loss, view, advance=advance) for loss, view in zip(losses, views, strict=True)]
        rows = rows_against(losses, comparisons, self.entries, self.layout)
        return dict(zip(self.of_entries, rows, strict=True))

    def _terms_of_tiles(self, *, advance: bool) -> tuple[list[int], Tensor]:
        """Indices and values of the members whose pairs are divided."""
        comparisons = {}
        for index in self.of_tiles:
            loss: Any = self.members[index]
            view = self.comparison if self.heads is None else self.heads.view(index)
            comparisons[index] = compared(loss, view, advance=advance)
        indices, terms, shares = terms_by_tiles(self.members, comparisons, self.of_tiles, self.layout.group)
        self.active |= zip(indices, shares.unbind(), strict=True)
        return indices, terms

    def _samples(self, index: int) -> Comparison:
        """The samples of all ranks as a member sees them."""
        view = self.comparison if self.heads is None else self.heads.view(index)
        return Comparison(view.anchors, view.labels)

    def _merged(self, index: int) -> Tensor:
        """The value of a member from what the classes of every rank give the samples of all."""
        loss: Any = self.members[index]
        comparison = loss.reshaped(self._samples(index)).in_dtype()
        with torch.autocast(comparison.anchors.device.type, enabled=False):
            values = merged_values(loss.class_sums(comparison), self.anchors, loss.shard)  # [N]
        self.active[index] = (values.detach() > 0).float().mean()
        total = values.sum() if loss.options.reduction == "sum" else values.sum() / max(len(values), 1)
        return total.to(comparison.dtype)

    def terms(self, outcome: Outcome, *, advance: bool) -> dict[int, Tensor]:
        """The values of the members that are divided, from the rows of all ranks, by one all-reduce, and one for those whose
        pairs are divided. Two more for each member whose classes are divided."""
        terms = self._terms_of_rows(outcome)
        if self.of_tiles:
            indices, values = self._terms_of_tiles(advance=advance)
            if indices == list(range(len(self.members))):
                self.all_terms = values
            terms |= zip(indices, values.unbind(), strict=True)
        return terms | {index: self._merged(index) for index in self.summed}

    def _terms_of_rows(self, outcome: Outcome) -> dict[int, Tensor]:
        rows = {index: outcome.completed.pop(index) for index in self.indices}
        if not rows:
            return {}
        sums = torch.cat([values.sum(1).double() for values, _ in rows.values()])
        numbers = []
        for values, counts in rows.values():
            length = torch.full((1,), values.shape[1], device=values.device)
            numbers += [counts.detach().sum(1), (values.detach() > 0).any(0).sum()[None], length]
        entered = None if self.of_tiles else self.anchors  # every rank differentiates tiles, with samples or without
        sums, numbers = total(sums, torch.cat([number.double() for number in numbers]), entered, self.layout.group)
        terms = {}
        for index, (values, _) in rows.items():
            length = len(values)
            own, sums = sums[:length], sums[length:]
            counts, is_active, count, numbers = numbers[:length], *numbers[length : length + 2], numbers[length + 2 :]
            count = count.clamp_min(1)
            terms[index] = _reduced(own, counts, count, self.members[index].options.reduction).to(values.dtype)
            self.active[index] = (is_active / count).float()
        return terms


def _is_divided(loss: Loss, comparison: Comparison) -> bool:
    if not isinstance(loss, RowLoss) or not loss.by_rows or not loss.takes_references:
        return False
    if not loss.streams or loss.reduces or loss.reshapes or any(True for _ in loss.parameters()):
        return False
    if loss.miner is not None and not loss.miner.by_row:
        return False
    fusion = fusion_of(loss, comparison.anchors.device.type)  # coupled pairs are found from both sides
    return fusion is None or not fusion.couples


def _reduced(sums: Tensor, counts: Tensor, count: Tensor, reduction: str) -> Tensor:
    """As `dmlcore.losses.path.reduced`, from the sums over all anchors."""
    if reduction == "default":
        return (sums / counts.clamp_min(1)).sum()
    return sums.sum() if reduction == "sum" else sums.sum() / count
