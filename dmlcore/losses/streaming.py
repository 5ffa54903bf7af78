"""Plain definitions over some anchors at a time, so that memory stays within a budget whatever the batch size.

A definition that keeps rows apart gives the same numbers for part of the anchors. Backward computes each part again
(`torch.utils.checkpoint`), so no matrix of similarities outlives its part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from dmlcore.losses.base import Rows, Sides

BUDGET = 64 << 20
"""Bytes that the matrices of one part may take; a single anchor's rows are never divided."""

_limit = threading.local()


@contextmanager
def stream_budget(size: int) -> Iterator[None]:
    """Another budget than `BUDGET` inside a `with` block, for tests and measurements.

    Args:
        size: bytes; 0 takes anchors one at a time.
    """
    before = getattr(_limit, "size", None)
    _limit.size = size
    try:
        yield
    finally:
        _limit.size = before


def budget() -> int:
    """Bytes that the matrices of one part may take now."""
    size = getattr(_limit, "size", None)
    return BUDGET if size is None else size


def part_of(sides: Sides, start: int, stop: int) -> Sides:
    """The anchors `start..stop - 1` against all references. A batch against itself becomes its own references."""
    own = sides.own
    references, reference_labels = sides.references, sides.reference_labels
    if references is None:
        references, reference_labels = sides.anchors, sides.anchor_labels
        own = torch.arange(len(references), device=references.device)
    return sides._replace(
        anchors=sides.anchors[start:stop],
        anchor_labels=sides.anchor_labels[start:stop],
        references=references,
        reference_labels=reference_labels,
        own=None if own is None else own[start:stop],
        mining=None if sides.mining is None else sides.mining._replace(first=sides.mining.first + start),
    )


def streamed_rows(compute: Callable[[Sides], Rows], sides: Sides, matrices: int) -> Rows:
    """Values and counts of all anchors, computed for as many at a time as the budget allows.

    Args:
        compute: values and counts `[V, A]` of sides; each anchor's must not depend on which others are there.
        sides: what is compared with what.
        matrices: how many matrices `[A, N]` of the anchors' dtype `compute` has alive.

    Returns:
        Values and counts `[V, A]`, the same as `compute(sides)`, differentiable as often as `compute` is.
    """
    count = len(sides.anchors)
    references = sides.anchors if sides.references is None else sides.references
    step = max(budget() // max(matrices * len(references) * sides.anchors.element_size(), 1), 1)
    if step >= count:
        return compute(sides)

    def run(anchors: Tensor, references: Tensor, start: int) -> tuple[Tensor, Tensor]:
        part = part_of(sides, start, start + len(anchors))
        values, counts = compute(part._replace(anchors=anchors, references=references))
        return values, counts

    values, counts = [], []
    for index, anchors in enumerate(sides.anchors.split(step)):
        # anchors and references are arguments, so that autograd notices when they are changed before backward
        some, number = checkpoint(run, anchors, references, index * step, use_reentrant=False)  # type: ignore[misc]
        values.append(some)
        counts.append(number)
    from dmlcore.losses.base import Rows

    return Rows(torch.cat(values, dim=1), torch.cat(counts, dim=1))
