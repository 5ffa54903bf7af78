"""Ranks of positives in plain PyTorch, in chunks of queries: the definition, also used without the extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmlcore.evaluation.relevance import Labels, Relevance
from dmlcore.ranks.dividing import share_of

CHUNK_CELLS = 1 << 22  # similarities held at a time


def prepared(embeddings: Tensor, metric: str) -> Tensor:
    """Embeddings as they are multiplied: for "cosine" with unit norm, where a zero vector stays zero."""
    if metric != "cosine":
        return embeddings
    largest = embeddings.abs().amax(1, keepdim=True)  # [N, 1]
    scaled = embeddings / torch.where(largest > 0, largest, 1)  # so that no square overflows or vanishes
    return functional.normalize(scaled)


def _distinct(embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
    """The distinct rows and, if any row repeats, the place of every row among them.

    A matrix product may round equal columns differently, depending on where they stand; ties are exact only if equal rows
    are multiplied once.
    """
    bits = (embeddings + 0.0).view(torch.int32 if embeddings.dtype == torch.float32 else torch.int64)  # -0.0 is 0.0
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(1 << 62, (bits.shape[1],), generator=generator).to(bits.device) | 1
    keys = torch.zeros(len(bits), dtype=torch.int64, device=bits.device)
    for column in range(bits.shape[1]):  # [N] at a time
        keys += (bits[:, column].long() ^ (keys >> 17)) * factors[column]
    unique, place = torch.unique(keys, return_inverse=True)
    if len(unique) == len(keys):
        return embeddings, None
    first = torch.full((len(unique),), len(keys), device=keys.device)
    first.scatter_reduce_(0, place, torch.arange(len(keys), device=keys.device), "amin")
    if torch.equal(embeddings[first][place], embeddings):
        return embeddings[first], place
    return torch.unique(embeddings + 0.0, dim=0, return_inverse=True)  # two different rows share a key


def rank_positives(
    queries: Tensor,
    query_labels: Labels,
    references: Tensor | None,
    reference_labels: Labels | None,
    ks: Sequence[int],
    metric: str,
    own: Tensor | None = None,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """What every query finds.

    References are ordered by descending similarity; a negative exactly as similar as a positive comes before it. Rank 1 is
    the nearest. With n positives at the ranks r_1 < ... < r_n, R = n:

        r_precision = mean(r <= R);  map@r = sum((1..n) / r where r <= R) / R;  map = mean((1..n) / r)

    Args:
        queries: [Q, D] float32 or float64, finite.
        query_labels: [Q] int64, or sets of labels: those that share a label are positives.
        references: [N, D]; None: every query against all other queries.
        reference_labels: of N references, or None.
        ks: numbers of nearest references, each at least 1.
        metric: "cosine", "dot" or "euclidean".
        own: [Q] int64, the reference that is the query itself and does not count, or -1. None: there is none.
        share: which of how many parts of the queries are looked at. The columns of the others are zeros.

    Returns:
        [5 + len(ks), Q] float64: number of positives, rank of the first, r_precision, map@r, map, then for every k the
        positives among the k nearest. Zeros for a query without a positive.
    """
    theirs, their_labels = queries, query_labels
    if references is None:
        own = torch.arange(len(queries), device=queries.device)
    if references is not None and reference_labels is not None:
        theirs, their_labels = references, reference_labels
    values = torch.zeros(5 + len(ks), len(queries), dtype=torch.float64, device=queries.device)
    if len(queries) == 0 or len(theirs) == 0:
        return values
    columns, place = _distinct(prepared(theirs, metric))
    rows = prepared(queries, metric)
    halves = columns.double().square().sum(1).to(columns.dtype) / 2 if metric == "euclidean" else None  # [N]
    relevance = Relevance(query_labels, their_labels, queries.device)
    chunk = max(1, CHUNK_CELLS // len(theirs))
    starts = range(0, len(queries), chunk)
    numbers = share_of(len(starts), *share)
    for start in starts[numbers.start : numbers.stop]:
        part = slice(start, min(start + chunk, len(queries)))
        s = rows[part] @ columns.T  # [c, N]
        if halves is not None:
            s = s - halves  # the query's own half changes no order
        if place is not None:
            s = s[:, place]
        positive = relevance.of(torch.arange(part.start, part.stop, device=s.device))  # [c, N]
        itself = torch.nonzero(own[part] >= 0)[:, 0] if own is not None else None
        if own is not None and itself is not None:
            positive[itself, own[part][itself]] = True  # nor is it a negative
        negatives = s.masked_fill(positive, -torch.inf).sort(dim=1).values
        if own is not None and itself is not None:
            positive[itself, own[part][itself]] = False
        values[:, part] = results(s, positive, negatives, ks)
    return values


def results(s: Tensor, positive: Tensor, negatives: Tensor, ks: Sequence[int]) -> Tensor:
    """The rows of `rank_positives` for some queries.

    Args:
        s: [c, N] similarities to the references.
        positive: [c, N], which references are positives.
        negatives: [c, N] similarities in ascending order, -inf for all that are no negatives.
        ks: as `rank_positives`.
    """
    values = torch.zeros(5 + len(ks), len(s), dtype=torch.float64, device=s.device)
    count = positive.sum(1)  # [c]
    most = int(count.max())
    if most == 0:
        return values
    t = s.masked_fill(~positive, -torch.inf).topk(most, dim=1).values  # [c, P] descending
    held = torch.arange(1, most + 1, device=s.device)  # how many positives there are up to this one
    real = held <= count[:, None]
    above = s.shape[1] - torch.searchsorted(negatives, t.contiguous())  # negatives with s >= t
    rank = held + above
    precision = torch.where(real, held.double() / rank, 0.0)
    within = real & (rank <= count[:, None])
    size = count.clamp_min(1).double()
    values[0] = count.double()
    values[1] = torch.where(count > 0, rank[:, 0], 0).double()
    values[2] = within.sum(1) / size
    values[3] = torch.where(within, precision, 0.0).sum(1) / size
    values[4] = precision.sum(1) / size
    for row, k in enumerate(ks):
        values[5 + row] = (real & (rank <= k)).sum(1).double()
    return values
