"""Which pairs are positives, where equal labels do not say it: labels as binary matrices, relations given as functions.

A relation is evaluated on blocks of labels, so that nothing of the size anchors x references x labels ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError

if TYPE_CHECKING:
    from dmlcore.losses.base import Sides

Relation = Callable[[Tensor, Tensor], Tensor]
"""Labels of `a` anchors and of `b` references to a bool matrix `[a, b]`: which pairs are positives. Tensors of any shape whose
first dimension counts samples."""

BLOCK = (256, 4096)
"""Anchors and references of one block."""


class Positives(NamedTuple):
    """The positives of every anchor as one list.

    Attributes:
        start: `[A + 1]` int64; those of anchor `i` are `index[start[i]:start[i + 1]]`.
        index: int64, references, rising within an anchor.
    """

    start: Tensor
    index: Tensor


def share_a_label(labels: Tensor, others: Tensor) -> Tensor:
    """The relation of label matrices: positive where at least one label is common.

    Args:
        labels: `[a, L]` bool.
        others: `[b, L]` bool.

    Returns:
        `[a, b]` bool. A sample without labels is related to none.
    """
    return labels.float() @ others.float().T > 0  # sums of ones: exact, and above 0 in any precision


def label_matrix(labels: Tensor, noun: str) -> Tensor:
    """Binary labels as bool.

    Args:
        labels: `[N, L]`, bool or numbers that are 0 or 1.
        noun: whose labels, for messages.

    Raises:
        ConfigError: no matrix, or other numbers (looked at on the CPU only: elsewhere it would wait).
    """
    if labels.ndim != 2:
        raise ConfigError(f"binary labels of {noun} must be a matrix [{len(labels)}, L], got the shape {list(labels.shape)}")
    found = labels.bool()
    if labels.dtype != torch.bool and labels.device.type == "cpu" and not torch.compiler.is_compiling():
        if not torch.equal(found.to(labels.dtype), labels):
            raise ConfigError(f"a matrix of labels of {noun} must hold 0 and 1 only")
    return found


def related(relation: Relation, labels: Tensor, others: Tensor) -> Tensor:
    """A relation on all pairs, `[A, N]` bool, evaluated block by block.

    Raises:
        ConfigError: the relation returns something else than a matrix with a row per anchor and a column per reference.
    """
    rows = []
    for some in labels.split(BLOCK[0]) if len(labels) else ():
        rows.append(torch.cat([_block(relation, some, more) for more in others.split(BLOCK[1])], dim=1))  # [a, N]
    return torch.cat(rows) if rows else torch.zeros(0, len(others), dtype=torch.bool, device=labels.device)


def _block(relation: Relation, labels: Tensor, others: Tensor) -> Tensor:
    if not len(others):  # a relation need not expect to be asked about nothing
        return torch.zeros(len(labels), 0, dtype=torch.bool, device=labels.device)
    found = relation(labels, others)
    if not isinstance(found, Tensor) or found.shape != (len(labels), len(others)):
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"relation must return a bool matrix [{len(labels)}, {len(others)}] for such blocks, got {got}")
    return found.bool()


@torch.no_grad()
def positives_of(sides: Sides) -> Positives:
    """Every anchor's positives by the relation of the sides, without the anchor itself. Memory is that of the lists."""
    assert sides.relation is not None
    others = sides.anchor_labels if sides.reference_labels is None else sides.reference_labels
    device, counts, lists, at = sides.anchors.device, [], [], 0
    own = torch.arange(len(sides.anchors), device=device) if sides.references is None else sides.own
    for labels in sides.anchor_labels.split(BLOCK[0]) if len(sides.anchor_labels) else ():
        rows, columns, first = [], [], 0
        for more in others.split(BLOCK[1]):
            found = _block(sides.relation, labels, more)
            if own is not None:
                column = own[at : at + len(labels)] - first  # [a]
                here = ((column >= 0) & (column < len(more))).nonzero().flatten()
                found = found.index_put((here, column[here]), found.new_zeros(()))
            row, column = found.nonzero(as_tuple=True)
            rows.append(row)
            columns.append(column + first)
            first += len(more)
        row, column = torch.cat(rows), torch.cat(columns)
        lists.append(column[torch.argsort(row, stable=True)])
        counts.append(torch.bincount(row, minlength=len(labels)))
        at += len(labels)
    start = torch.zeros(len(sides.anchors) + 1, dtype=torch.int64, device=device)
    if counts:
        start[1:] = torch.cat(counts).cumsum(0)
    return Positives(start, torch.cat(lists) if lists else start[:0])


@torch.no_grad()
def most_positives(sides: Sides) -> int:
    """The largest number of references that one anchor is related to; itself is counted too."""
    if not len(sides.anchor_labels):
        return 0
    others = sides.anchor_labels if sides.reference_labels is None else sides.reference_labels
    if not len(others):
        return 0
    if sides.relation is None:
        return int(torch.unique(others, return_counts=True)[1].max())
    most = 0
    for labels in sides.anchor_labels.split(BLOCK[0]):
        found = sum(_block(sides.relation, labels, more).sum(1) for more in others.split(BLOCK[1]))
        assert isinstance(found, Tensor)
        most = max(most, int(found.max()))
    return most
