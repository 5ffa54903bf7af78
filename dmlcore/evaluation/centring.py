"""Vectors far from the origin, moved to where float32 can tell their distances apart. What is ranked stands in `metrics.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlcore.evaluation.plain import prepared

PIECE_ROWS = 1 << 14  # in float64 at a time
NARROW = 1 / 1024
"""Cosines rank as distances of centred unit vectors where 1 - |mean unit vector|^2 is below this (1: spread all around).
Above it float32 tells cosines apart, and they keep their bits."""


def centred(queries: Tensor, references: Tensor | None, metric: str) -> tuple[Tensor, Tensor | None, str]:
    """The same ranking of other vectors.

    A product of vectors is rounded by their lengths, so a common offset costs the digits that tell neighbours apart. Euclidean
    distances do not change when it is taken away. Cosines have no offset to take away, but rank as the distances of unit
    vectors do, which have one where all point into a narrow cone.

    Args:
        queries: `[Q, D]` float32 or float64, finite.
        references: `[N, D]` of the same type, or None: the queries.
        metric: `cosine`, `dot` or `euclidean`.

    Returns:
        Queries, references, and the metric to rank them by. Equal rows stay equal.
    """
    theirs = queries if references is None else references
    if metric == "euclidean":
        offset = _offset(theirs)
        if bool((offset == 0).all()):
            return queries, references, metric
        return queries - offset, None if references is None else references - offset, metric
    if metric == "cosine" and _has_no_zero(queries) and _has_no_zero(theirs):  # a zero vector is as far from all by its cosine
        centre = torch.zeros(theirs.shape[1], dtype=torch.float64, device=theirs.device)
        for piece in theirs.split(PIECE_ROWS):
            centre += prepared(piece.double(), "cosine").sum(0)
        centre /= len(theirs)
        if float(1 - centre.square().sum()) < NARROW:
            return _moved(queries, centre), None if references is None else _moved(references, centre), "euclidean"
    return queries, references, metric


def _offset(vectors: Tensor) -> Tensor:
    """`[D]` the mean, rounded to the power of two below each column's standard deviation; 0 where it is not twice as far.

    Whole numbers stay whole by this, and vectors around the origin stay as they are.
    """
    mean = vectors.mean(0, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for piece in vectors.split(PIECE_ROWS):
        squares += (piece.double() - mean).square().sum(0)
    deviation = (squares / len(vectors)).sqrt()
    step = torch.exp2(torch.floor(torch.log2(deviation)))  # 0 for a column without any
    offset = torch.where(step > 0, torch.round(mean / step) * step, vectors[0].double())
    return torch.where(mean.abs() > 2 * deviation, offset, 0.0).to(vectors.dtype)


def _has_no_zero(vectors: Tensor) -> bool:
    return not bool((vectors.abs().amax(1) == 0).any())


def _moved(vectors: Tensor, centre: Tensor) -> Tensor:
    """Unit vectors less the centre, computed in float64."""
    pieces = [(prepared(piece.double(), "cosine") - centre).to(vectors.dtype) for piece in vectors.split(PIECE_ROWS)]
    return torch.cat(pieces)
