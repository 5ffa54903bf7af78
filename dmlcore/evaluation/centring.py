"""Vectors far from the origin, moved to where float32 can tell their distances apart. What is ranked stands in `metrics.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlcore.evaluation.plain import prepared
from dmlcore.ranks import Layout, gathered, summed

PIECE_ROWS = 1 << 14  # in float64 at a time
NARROW = 1 / 1024
"""Cosines rank as distances of centred unit vectors where 1 - |mean unit vector|^2 is below this (1: spread all around).
Above it float32 tells cosines apart, and they keep their bits."""


def centred(
    queries: Tensor, references: Tensor | None, metric: str, layout: Layout | None = None
) -> tuple[Tensor, Tensor | None, str]:
    """The same ranking of other vectors.

    A product of vectors is rounded by their lengths, so a common offset costs the digits that tell neighbours apart. Euclidean
    distances do not change when it is taken away. Cosines have no offset to take away, but rank as the distances of unit
    vectors do, which have one where all point into a narrow cone.

    Args:
        queries: `[Q, D]` float32 or float64, finite.
        references: `[N, D]` of the same type, or None: the queries.
        metric: `cosine`, `dot` or `euclidean`.
        layout: of the references, or where these are None of the queries, of which each rank has its own rows. The bits are
            those of one process.

    Returns:
        Queries, references, and the metric to rank them by. Equal rows stay equal.
    """
    theirs = queries if references is None else references
    count = len(theirs) if layout is None else sum(layout.sizes)
    if metric == "euclidean":
        offset = _offset(theirs, count, layout)
        if bool((offset == 0).all()):
            return queries, references, metric
        return queries - offset, None if references is None else references - offset, metric
    if metric == "cosine" and _have_no_zero(queries, theirs, layout):  # a zero vector is as far from all by its cosine
        centre = _total(theirs, lambda piece: prepared(piece.double(), "cosine").sum(0), layout) / count
        if float(1 - centre.square().sum()) < NARROW:
            return _moved(queries, centre), None if references is None else _moved(references, centre), "euclidean"
    return queries, references, metric


def _total(vectors: Tensor, sum_of: Callable[[Tensor], Tensor], layout: Layout | None) -> Tensor:
    """`[D]` float64, the sum over pieces of the rows of what a function makes of each, in their order.

    A piece that lies on several ranks is gathered, so that every piece is summed whole.
    """
    count = len(vectors) if layout is None else sum(layout.sizes)
    starts = range(0, count, PIECE_ROWS)
    sums = vectors.new_zeros(len(starts), vectors.shape[1], dtype=torch.float64)
    first = 0 if layout is None else layout.first
    for number, start in enumerate(starts):
        stop = min(start + PIECE_ROWS, count)
        piece = vectors[max(start - first, 0) : max(stop - first, 0)]
        if layout is not None:
            parts = _parts(layout, start, stop)
            if sum(size > 0 for size in parts) > 1:
                (piece,) = gathered([piece], Layout(layout.group, layout.rank, parts))
                piece = piece if layout.rank == 0 else piece[:0]
        if len(piece):
            sums[number] = sum_of(piece)
    if layout is not None:
        sums = summed(sums, layout.group)  # each is of one rank, and zeros change no bit
    total = torch.zeros_like(sums[0])
    for row in sums:
        total += row
    return total


def _parts(layout: Layout, start: int, stop: int) -> tuple[int, ...]:
    """How many of some rows are each rank's."""
    parts, first = [], 0
    for size in layout.sizes:
        parts.append(max(0, min(stop, first + size) - max(start, first)))
        first += size
    return tuple(parts)


def _offset(vectors: Tensor, count: int, layout: Layout | None) -> Tensor:
    """`[D]` the mean, rounded to the power of two below each column's standard deviation; 0 where it is not twice as far.

    Whole numbers stay whole by this, and vectors around the origin stay as they are.
    """
    mean = _total(vectors, lambda piece: piece.double().sum(0), layout) / count
    squares = _total(vectors, lambda piece: (piece.double() - mean).square().sum(0), layout)
    deviation = (squares / count).sqrt()
    step = torch.exp2(torch.floor(torch.log2(deviation)))  # 0 for a column without any
    offset = torch.where(step > 0, torch.round(mean / step) * step, _first_row(vectors, layout).double())
    return torch.where(mean.abs() > 2 * deviation, offset, 0.0).to(vectors.dtype)


def _first_row(vectors: Tensor, layout: Layout | None) -> Tensor:
    if layout is None:
        return vectors[0]
    row = vectors[0] if layout.count and not layout.first else vectors.new_zeros(vectors.shape[1])
    return summed(row, layout.group)


def _have_no_zero(queries: Tensor, references: Tensor, layout: Layout | None) -> bool:
    zeros = sum(
        ((vectors == 0).all(1).sum() for vectors in (queries, references)), start=queries.new_zeros((), dtype=torch.int64)
    )
    return not int(zeros if layout is None else summed(zeros, layout.group))


def _moved(vectors: Tensor, centre: Tensor) -> Tensor:
    """Unit vectors less the centre, computed in float64."""
    pieces = [(prepared(piece.double(), "cosine") - centre).to(vectors.dtype) for piece in vectors.split(PIECE_ROWS)]
    return torch.cat(pieces) if pieces else vectors
