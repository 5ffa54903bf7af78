"""Which pairs are positives, where equal labels do not say it: labels as binary matrices, relations given as functions.

A relation is evaluated on blocks of labels, so that nothing of the size anchors x references x labels ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmlcore.errors import ConfigError

Relation = Callable[[Tensor, Tensor], Tensor]
"""Labels of `a` anchors and of `b` references to a bool matrix `[a, b]`: which pairs are positives. Tensors of any shape whose
first dimension counts samples."""

BLOCK = (256, 4096)
"""Anchors and references of one block."""
FEW_PAIRS = 32
"""Where no more than one in so many pairs has a common label, counted once for each, the pairs are listed label by label on the
CPU. That costs less than a product of the labels."""


class Positives(NamedTuple):
    """The positives of every anchor as one list.

    Attributes:
        start: `[A + 1]` int64; those of anchor `i` are `index[start[i]:start[i + 1]]`.
        index: int64, references, rising within an anchor.
    """

    start: Tensor
    index: Tensor


def share_a_label(labels: Tensor, other_labels: Tensor) -> Tensor:
    """The relation of label matrices: positive where at least one label is common.

    Args:
        labels: `[a, L]` bool.
        other_labels: `[b, L]` bool.

    Returns:
        `[a, b]` bool. A sample without labels is related to none.
    """
    return labels.float() @ other_labels.float().T > 0  # sums of ones: exact, and above 0 in any precision


def label_matrix(labels: Tensor, noun: str) -> Tensor:
    """Binary labels as bool.

    Args:
        labels: `[N, L]`, bool or numbers that are 0 or 1.
        noun: whose labels, for messages.

    Raises:
        ConfigError: no matrix, a single column of numbers, or other numbers (an assertion of the device on CUDA).
    """
    if labels.ndim != 2:
        raise ConfigError(f"binary labels of {noun} must be a matrix [{len(labels)}, L], got the shape {list(labels.shape)}")
    if labels.shape[1] == 1 and labels.dtype != torch.bool:  # hardly ever meant: each number but 0 would be the same label
        raise ConfigError(
            f"labels of {noun} are a column {list(labels.shape)} of {labels.dtype}; give one label per sample,"
            f" [{len(labels)}] (labels[:, 0]). A matrix that says of one label who has it must be bool"
        )
    matrix = labels.bool()
    if labels.dtype == torch.bool:
        return matrix
    message = f"a matrix of labels of {noun} must hold 0 and 1 only"
    is_binary = (matrix.to(labels.dtype) == labels).all()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        if not is_binary:
            raise ConfigError(message)
        return matrix
    torch.ops.aten._assert_async.msg(is_binary, message)  # without waiting for the device
    return matrix


def related(relation: Relation, labels: Tensor, other_labels: Tensor) -> Tensor:
    """A relation on all pairs, `[A, N]` bool, evaluated block by block.

    Raises:
        ConfigError: the relation returns something else than a matrix with a row per anchor and a column per reference.
    """
    rows = []
    for block in labels.split(BLOCK[0]) if len(labels) else ():
        parts = [_block(relation, block, other_block) for other_block in other_labels.split(BLOCK[1])]
        rows.append(torch.cat(parts, dim=1))  # [a, N]
    return torch.cat(rows) if rows else torch.zeros(0, len(other_labels), dtype=torch.bool, device=labels.device)


def _block(relation: Relation, labels: Tensor, other_labels: Tensor) -> Tensor:
    if not len(other_labels):  # a relation need not expect to be asked about nothing
        return torch.zeros(len(labels), 0, dtype=torch.bool, device=labels.device)
    positive = relation(labels, other_labels)
    if not isinstance(positive, Tensor) or positive.shape != (len(labels), len(other_labels)):
        got = list(positive.shape) if isinstance(positive, Tensor) else type(positive).__name__
        raise ConfigError(f"relation must return a bool matrix [{len(labels)}, {len(other_labels)}] for such blocks, got {got}")
    return positive.bool()


@torch.no_grad()
def positives_of(
    relation: Relation, labels: Tensor, other_labels: Tensor, own: Tensor | None, device: torch.device
) -> Positives:
    """Every anchor's positives by a relation, without the anchor itself. Memory is that of the lists.

    Args:
        relation: which pairs are positives.
        labels, other_labels: of `A` anchors and `N` references.
        own: `[A]` int64, the reference that is the anchor itself or -1. None: there is none.
        device: of the lists.
    """
    if relation is share_a_label and labels.device.type == "cpu":
        listed = _listed_by_label(labels, other_labels, own)
        if listed is not None:
            return listed
    counts, lists, at = [], [], 0
    for block in labels.split(BLOCK[0]) if len(labels) else ():
        rows, columns, first = [], [], 0
        for other_block in other_labels.split(BLOCK[1]):
            positive = _block(relation, block, other_block)
            if own is not None:
                column = own[at : at + len(block)] - first  # [a]
                here = ((column >= 0) & (column < len(other_block))).nonzero().flatten()
                positive = positive.index_put((here, column[here]), positive.new_zeros(()))
            row, column = positive.nonzero(as_tuple=True)
            rows.append(row)
            columns.append(column + first)
            first += len(other_block)
        row, column = torch.cat(rows), torch.cat(columns)
        lists.append(column if len(rows) == 1 else column[torch.argsort(row, stable=True)])  # of one block they are in order
        counts.append(torch.bincount(row, minlength=len(block)))
        at += len(block)
    start = torch.zeros(len(labels) + 1, dtype=torch.int64, device=device)
    if counts:
        start[1:] = torch.cat(counts).cumsum(0)
    return Positives(start, torch.cat(lists) if lists else start[:0])


def _listed_by_label(labels: Tensor, other_labels: Tensor, own: Tensor | None) -> Positives | None:
    """What `positives_of` returns for label matrices, from the members of each label. None: there are too many pairs."""
    anchor, label = labels.nonzero(as_tuple=True)
    other, other_label = other_labels.nonzero(as_tuple=True)
    size = torch.bincount(other_label, minlength=labels.shape[1])  # [L]
    number = size[label]
    if FEW_PAIRS * int(number.sum()) > len(labels) * len(other_labels):
        return None
    members = other[torch.argsort(other_label, stable=True)]
    begins = (size.cumsum(0) - size)[label] - (number.cumsum(0) - number)  # less the place among all pairs
    place = torch.arange(int(number.sum())) + begins.repeat_interleave(number)
    pair = torch.unique(anchor.repeat_interleave(number) * len(other_labels) + members[place])  # rising
    row = torch.div(pair, max(len(other_labels), 1), rounding_mode="floor")
    index = pair - row * len(other_labels)
    if own is not None:
        counts = index != own[row]
        row, index = row[counts], index[counts]
    start = torch.zeros(len(labels) + 1, dtype=torch.int64)
    start[1:] = torch.bincount(row, minlength=len(labels)).cumsum(0)
    return Positives(start, index)


@torch.no_grad()
def most_positives(relation: Relation | None, labels: Tensor, other_labels: Tensor) -> int:
    """The largest number of references that one anchor is related to. The anchor itself is counted too.

    Args:
        relation: None: equal labels.
        labels, other_labels: of anchors and references.
    """
    if not len(labels) or not len(other_labels):
        return 0
    if relation is None:
        return int(torch.unique(other_labels, return_counts=True)[1].max())
    most = 0
    for block in labels.split(BLOCK[0]):
        counts = torch.stack([_block(relation, block, other_block).sum(1) for other_block in other_labels.split(BLOCK[1])])
        most = max(most, int(counts.sum(0).max()))
    return most


def check_range_of_labels(labels: Tensor, count: int, what: str) -> None:
    """Refuse labels that are not 0..count-1.

    Args:
        labels: `[B]` whole numbers.
        count: of labels.
        what: has one of each, for the message, as in `margin has a beta`.

    Raises:
        ConfigError: on the CPU.
        RuntimeError: on other devices and in compiled code, where looking at the labels would wait or end the graph. There a
            check is queued behind them and fails at the next wait.
    """
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        if len(labels):
            lowest, highest = (int(label) for label in torch.aminmax(labels))
            if lowest < 0 or highest >= count:
                raise ConfigError(f"{what} for labels 0..{count - 1}, got labels {lowest}..{highest}")
        return
    torch.ops.aten._assert_async.msg(((labels >= 0) & (labels < count)).all(), f"{what} for labels 0..{count - 1}, got others")
