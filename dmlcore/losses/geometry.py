"""Similarities and distances of the plain definitions, with the same conventions as the kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIECE_CELLS = 1 << 24  # numbers in an intermediate result of `in_pieces`: 64 MB of float32


def unit(vectors: Tensor) -> Tensor:
    """Rows scaled to norm 1; a row of zeros (norm <= 1e-12) stays zero and gets a zero gradient.

    Args:
        vectors: `[N, D]` floating point.

    Returns:
        `[N, D]`.
    """
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # [N, 1]
    zero = norms <= 1e-12
    return torch.where(zero, torch.zeros_like(vectors), vectors / torch.where(zero, torch.ones_like(norms), norms))


def cosine_similarities(anchors: Tensor, references: Tensor) -> Tensor:
    """Cosines of all anchors with all references, `[A, N]`."""
    return unit(anchors) @ unit(references).T


def distances(similarities: Tensor) -> Tensor:
    """Euclidean distances of unit vectors from their cosines: `sqrt(2 - 2 s)`.

    Where `d^2 <= 4 eps` of the dtype the points count as one: distance 0 with gradient 0, so that coincident points have
    finite gradients.
    """
    squares = 2 - 2 * similarities
    apart = squares > 4 * torch.finfo(similarities.dtype).eps
    return torch.where(apart, torch.sqrt(torch.where(apart, squares, torch.ones_like(squares))), torch.zeros_like(squares))


def masked_logsumexp(exponents: Tensor, mask: Tensor, *, one: bool = False) -> Tensor:
    """`log(sum(exp(x)))` of each row over the entries of a mask.

    Args:
        exponents: `[A, N]`.
        mask: `[A, N]` bool.
        one: add 1 to the sum, so that a row without entries gives 0.

    Returns:
        `[A]`; rows without entries give the dtype's lowest number if `one` is False. Their gradient is zero.
    """
    lowest = torch.finfo(exponents.dtype).min
    masked = torch.where(mask, exponents, torch.full_like(exponents, lowest))
    if one:
        masked = torch.cat([masked, masked.new_zeros(masked.shape[0], 1)], dim=1)  # [A, N + 1]
        return torch.logsumexp(masked, dim=1)
    if masked.shape[1] == 0:
        return masked.new_full((masked.shape[0],), lowest)
    some = mask.any(dim=1)
    safe = torch.where(some[:, None], masked, torch.zeros_like(masked))
    return torch.where(some, torch.logsumexp(safe, dim=1), torch.full_like(safe[:, 0], lowest))


def in_pieces(compute: Callable[..., Tensor], width: int, *rows: Tensor) -> Tensor:
    """`compute(*rows)` a piece of the rows at a time, computed again by the backward pass: bounds the memory of what is larger
    than a similarity matrix.

    Args:
        compute: from tensors of `a` rows to `[V, a]`, one column per row and independent of the other rows.
        width: how many numbers per row the largest intermediate result has.
        rows: tensors of as many rows as the result has columns.

    Returns:
        `[V, A]`.
    """
    step = max(PIECE_CELLS // max(width, 1), 1)
    if len(rows[0]) <= step:
        return compute(*rows)
    pieces = zip(*(tensor.split(step) for tensor in rows), strict=True)
    return torch.cat([checkpoint(compute, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces], dim=1)


def listed_positives(positive: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's positives as a list.

    Args:
        positive: `[A, N]` bool.

    Returns:
        Indices `[A, P]`, `P` the most positives of any row but at least 1 (0 without columns), and which of them are real,
        `[A, P]` bool.
    """
    most = min(max(int(positive.sum(1).max()) if len(positive) else 0, 1), positive.shape[1])
    index = positive.to(torch.uint8).topk(most, dim=1).indices
    return index, positive.gather(1, index)
