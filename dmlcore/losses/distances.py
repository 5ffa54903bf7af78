"""Similarities and distances of the plain definitions, with the same conventions as the kernels.

Every distance has the exact derivative of what it returns, finite everywhere: where the Euclidean one has none, at coincident
points, distance and gradient are 0. Points count as coincident below the resolution of the products they are computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmlcore.config import check_range

PIECE_CELLS = 1 << 24  # numbers in an intermediate result of `in_pieces`: 64 MB of float32

Distance = Literal["euclidean", "squared_euclidean", "cosine", "dot"]


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


def dot_products(anchors: Tensor, references: Tensor) -> Tensor:
    """Products of all anchors with all references as they are, `[A, N]`."""
    return anchors @ references.T


def squared_euclidean_distances(anchors: Tensor, references: Tensor, *, normalise: bool = True) -> Tensor:
    """`|x - y|^2` of all anchors `[A, D]` with all references `[N, D]`.

    Args:
        anchors: `[A, D]`.
        references: `[N, D]`.
        normalise: scale the vectors to unit norm first. Raw vectors are moved by the references' mean, which changes no
            distance, so that a common offset costs no digits.

    Returns:
        `[A, N]`, never below 0.
    """
    if normalise:
        return (2 - 2 * cosine_similarities(anchors, references)).clamp_min(0)
    return _raw_squares(anchors, references)[0].clamp_min(0)


def euclidean_distances(anchors: Tensor, references: Tensor, *, normalise: bool = True) -> Tensor:
    """`|x - y|` of all anchors `[A, D]` with all references `[N, D]`.

    Two vectors count as equal if `|x - y|^2 <= 2 eps (|x|^2 + |y|^2)`, with `eps` of the dtype. Their distance and its gradient
    are then 0. So small a square is nothing but rounding error, and the derivative of its root would not be finite.

    Args:
        anchors: `[A, D]`.
        references: `[N, D]`.
        normalise: scale the vectors to unit norm first. Raw vectors are moved by the references' mean, and the bound above uses
            the norms of the moved vectors.

    Returns:
        `[A, N]`, never below 0.
    """
    if normalise:
        return distances(cosine_similarities(anchors, references))
    return _roots(*_raw_squares(anchors, references))


def _raw_squares(anchors: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of raw vectors, and the size below which they are nothing but rounding error."""
    if len(references):
        centre = references.detach().mean(0)
        anchors, references = anchors - centre, references - centre
    norms = anchors.square().sum(1)[:, None] + references.square().sum(1)[None, :]  # [A, N]
    return norms - 2 * anchors @ references.T, 2 * torch.finfo(anchors.dtype).eps * norms.detach()


def _roots(squares: Tensor, resolution: Tensor | float) -> Tensor:
    apart = squares > resolution
    return torch.where(apart, torch.sqrt(torch.where(apart, squares, torch.ones_like(squares))), torch.zeros_like(squares))


def distances(similarities: Tensor, kind: Distance = "euclidean") -> Tensor:
    """Distances from similarities, entry by entry.

    Args:
        similarities: cosines, or for `dot` the products of vectors as they are.
        kind: `euclidean`, `sqrt(2 - 2 s)`: of unit vectors. Where `d^2 <= 4 eps` of the dtype the points count as one, with
            distance and gradient 0. `squared_euclidean`, `2 - 2 s`. `cosine`, `1 - s`. `dot`, `-s`: as far as the products are
            small, and possibly negative.
    """
    if kind == "squared_euclidean":
        return 2 - 2 * similarities
    if kind == "cosine":
        return 1 - similarities
    if kind == "dot":
        return -similarities
    return _roots(2 - 2 * similarities, 4 * torch.finfo(similarities.dtype).eps)


def check_margin(name: str, margin: float, kind: Distance) -> None:
    """Refuse a margin that no distance of the kind reaches; of products there is no bound.

    Raises:
        ConfigError: it is outside `[0, 2]` (`euclidean`, `cosine`) or `[0, 4]` (`squared_euclidean`), or not finite.
    """
    if kind == "dot":
        check_range(name, margin)
    else:
        check_range(name, margin, least=0, most=4 if kind == "squared_euclidean" else 2)


def masked_logsumexp(exponents: Tensor, mask: Tensor, *, plus_one: bool = False) -> Tensor:
    """`log(sum(exp(x)))` of each row over the entries of a mask.

    Args:
        exponents: `[A, N]`.
        mask: `[A, N]` bool.
        plus_one: add 1 to the sum, so that a row without entries gives 0.

    Returns:
        `[A]`; rows without entries give the dtype's lowest number if `plus_one` is False. Their gradient is zero.
    """
    lowest = torch.finfo(exponents.dtype).min
    masked = torch.where(mask, exponents, torch.full_like(exponents, lowest))
    if plus_one:
        masked = torch.cat([masked, masked.new_zeros(masked.shape[0], 1)], dim=1)  # [A, N + 1]
        return torch.logsumexp(masked, dim=1)
    if masked.shape[1] == 0:
        return masked.sum(dim=1) + lowest  # with a history, as where there are some
    some = mask.any(dim=1)
    safe = torch.where(some[:, None], masked, torch.zeros_like(masked))
    return torch.where(some, torch.logsumexp(safe, dim=1), torch.full_like(safe[:, 0], lowest))


def in_pieces(compute: Callable[..., Tensor], width: int, *rows: Tensor) -> Tensor:
    """`compute(*rows)` a piece of the rows at a time, computed again by the backward pass: bounded memory for what is larger
    than a similarity matrix.

    Args:
        compute: from tensors of `a` rows to `[V, a]`, one column per row and independent of the other rows.
        width: how many numbers per row the largest intermediate result has.
        rows: tensors of as many rows as the result has columns.

    Returns:
        `[V, A]`.
    """
    rows_at_once = max(PIECE_CELLS // max(width, 1), 1)
    if len(rows[0]) <= rows_at_once:
        return compute(*rows)
    pieces = zip(*(tensor.split(rows_at_once) for tensor in rows), strict=True)
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
