"""Re-ranking: a second look at what queries find, by the neighbours of the neighbours. Searching is in `serving/index.py`.

Vectors have unit norm, and `s(q, x) = q @ x` is their cosine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.errors import ConfigError, suggestion
from dmlcore.evaluation import metrics, plain

MOST = 20_000  # samples whose reciprocal neighbours are compared all with all: 1.6 GB of distances in float32
ROWS = 256  # queries at a time


@dataclass(frozen=True)
class RerankOptions:
    """Options of the methods. The defaults are those of the publications."""

    neighbours: int = 3
    """Neighbours that are added to a query, or to an entry of the database."""
    alpha: float = 3.0
    """Power of their similarity by which neighbours are weighed."""
    k1: int = 20
    """Neighbours that are asked whether they are reciprocal."""
    k2: int = 6
    """Neighbours over which the encodings are averaged."""
    weight: float = 0.3
    """Share of the original distance in the final one, in 0..1."""

    def __post_init__(self) -> None:
        for name in ("neighbours", "k1", "k2"):
            check_range(name, getattr(self, name), least=1)
        check_range("alpha", self.alpha, least=0)
        check_range("weight", self.weight, least=0, most=1)


def nearest(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [Q, k] and positions int64 [Q, k] of the references nearest to each query, the nearest first."""
    theirs = torch.from_numpy(np.ascontiguousarray(references))
    scores, places = [], []
    chunk = max(1, min(ROWS, plain.CHUNK_CELLS // max(len(references), 1)))
    pieces = range(0, len(queries), chunk)
    for start in progress.track(pieces, "finding neighbours", len(queries), chunk):
        part = torch.from_numpy(np.ascontiguousarray(queries[start : start + chunk]))
        best = (part @ theirs.T).topk(min(k, len(references)), dim=1)
        scores.append(best.values.numpy())
        places.append(best.indices.numpy())
    return np.concatenate(scores), np.concatenate(places)


def expand(queries: np.ndarray, found: np.ndarray, scores: np.ndarray, alpha: float) -> np.ndarray:
    """Alpha query expansion: `normalize(q + sum_i s(q, x_i)^alpha x_i)` over what the query found.

    Args:
        queries: float32 [Q, D], unit norm.
        found: float32 [Q, k, D], the nearest, unit norm.
        scores: float32 [Q, k], their similarities. Negative ones weigh nothing.
        alpha: at least 0.

    Returns:
        float32 [Q, D], unit norm.

    Source: Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, section 3.3.
    """
    weights = np.where(np.isfinite(scores), np.maximum(scores, 0), 0) ** alpha * (scores > 0)  # [Q, k]
    expanded = queries + np.einsum("qk,qkd->qd", weights, found)
    length = np.linalg.norm(expanded, axis=1, keepdims=True)
    return (expanded / np.where(length > 0, length, 1)).astype(np.float32)


def augment(vectors: np.ndarray, neighbours: int, alpha: float) -> np.ndarray:
    """Database augmentation: every entry becomes the weighted sum of itself and its nearest others, as `expand` weighs them.

    Args:
        vectors: float32 [N, D], unit norm.
        neighbours: of each.
        alpha: at least 0.

    Source: Arandjelovic and Zisserman, "Three things everyone should know to improve object retrieval", CVPR 2012, section 5,
    with the weights of alpha query expansion.
    """
    augmented = np.empty_like(vectors)
    for start in range(0, len(vectors), ROWS):
        part = slice(start, start + ROWS)
        scores, places = nearest(vectors[part], vectors, neighbours + 1)
        own = places == np.arange(start, start + len(scores))[:, None]
        scores = np.where(own, 0, scores)  # itself has weight one already
        augmented[part] = expand(vectors[part], vectors[places], scores, alpha)
    return augmented


def k_reciprocal(distances: np.ndarray, queries: int, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """k-reciprocal encoding: `(1 - weight) * jaccard + weight * d` between queries and all others.

    Distances are divided by the largest of their row. The encoding of sample i is `exp(-d_ij)` over its k1-reciprocal
    neighbours and those of theirs that agree in more than two thirds, made to sum to one and averaged over its k2 nearest.

    Args:
        distances: float32 [N, N], squared Euclidean distances between all samples, queries first. It is overwritten.
        queries: Q, how many are queries.
        k1: neighbours that are asked whether they are reciprocal.
        k2: neighbours over which encodings are averaged; 1: none.
        weight: of the original distance.

    Returns:
        float32 [Q, N], of which smaller is nearer.

    Source: Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, eq. 3 to 12.
    As in the authors' code, d in the exponent and in the sum is the normalised distance.
    """
    sparse: Any = importlib.import_module("scipy.sparse")  # late: few need it
    count = len(distances)
    k1, k2 = min(k1, count - 1), min(k2, count)
    distances /= np.maximum(distances.max(1, keepdims=True), np.finfo(np.float32).tiny)
    half = round(k1 / 2)
    ranks = np.empty((count, max(k1 + 1, k2)), dtype=np.int64)
    for start in range(0, count, ROWS):  # a stable order, so that equal distances always rank alike
        ranks[start : start + ROWS] = np.argsort(distances[start : start + ROWS], axis=1, kind="stable")[:, : ranks.shape[1]]
    near, nearer = [_reciprocal(ranks, k + 1) for k in (k1, half)]
    rows, columns, values = [], [], []
    for i in progress.track(range(count), "encoding reciprocal neighbours", count):
        members = near[i]
        grown = [members]
        for j in members:
            candidates = nearer[j]
            if len(np.intersect1d(candidates, members)) > 2 / 3 * len(candidates):
                grown.append(candidates)
        members = np.unique(np.concatenate(grown))
        weights = np.exp(-distances[i, members])
        rows.append(np.full(len(members), i))
        columns.append(members)
        values.append(weights / weights.sum())
    shape = (count, count)
    triple = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    encodings = sparse.csr_matrix(triple, shape=shape, dtype=np.float32)
    if k2 > 1:
        averaging = sparse.csr_matrix((np.full(count * k2, 1 / k2, dtype=np.float32), ranks[:, :k2].ravel(),
                                       np.arange(0, count * k2 + 1, k2)), shape=shape)  # fmt: skip
        encodings = averaging @ encodings
    by_column = encodings.tocsc()
    final = np.empty((queries, count), dtype=np.float32)
    for i in progress.track(range(queries), "comparing reciprocal neighbours", queries):
        shared = np.zeros(count, dtype=np.float32)  # sum_k min(V_ik, V_jk)
        start, stop = encodings.indptr[i], encodings.indptr[i + 1]
        for column, value in zip(encodings.indices[start:stop], encodings.data[start:stop], strict=True):
            first, last = by_column.indptr[column], by_column.indptr[column + 1]
            shared[by_column.indices[first:last]] += np.minimum(by_column.data[first:last], value)
        final[i] = (1 - weight) * (1 - shared / (2 - shared)) + weight * distances[i]
    return final


def _reciprocal(ranks: np.ndarray, k: int) -> list[np.ndarray]:
    """Of every sample, those of its k nearest that have it among their k nearest."""
    forward = ranks[:, :k]  # [N, k]
    is_mutual = (ranks[forward, :k] == np.arange(len(ranks))[:, None, None]).any(2)  # [N, k]
    return [row[mask] for row, mask in zip(forward, is_mutual, strict=True)]


def squared_distances(vectors: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances between unit vectors, float32 [N, N]."""
    distances = vectors @ vectors.T
    distances *= -2
    distances += 2
    np.maximum(distances, 0, out=distances)
    np.fill_diagonal(distances, 0)
    return distances


def _ranked_by_expansion(vectors: np.ndarray, options: RerankOptions) -> Iterator[Tensor]:
    for start in range(0, len(vectors), ROWS):
        part = vectors[start : start + ROWS]
        scores, places = nearest(part, vectors, options.neighbours + 1)
        own = places == np.arange(start, start + len(part))[:, None]
        expanded = expand(part, vectors[places], np.where(own, 0, scores), options.alpha)
        yield torch.from_numpy(expanded @ vectors.T)


def _ranked_by_augmentation(vectors: np.ndarray, options: RerankOptions) -> Iterator[Tensor]:
    augmented = augment(vectors, options.neighbours, options.alpha)
    for start in range(0, len(vectors), ROWS):
        yield torch.from_numpy(augmented[start : start + ROWS] @ augmented.T)


def _ranked_by_reciprocity(vectors: np.ndarray, options: RerankOptions) -> Iterator[Tensor]:
    if len(vectors) > MOST:
        raise ConfigError(
            f"k-reciprocal re-ranking compares all samples with all, and {len(vectors):,} are more than {MOST:,}. Evaluate"
            f" fewer, or take another method"
        )
    final = k_reciprocal(squared_distances(vectors), len(vectors), options.k1, options.k2, options.weight)
    for start in range(0, len(vectors), ROWS):
        yield torch.from_numpy(-final[start : start + ROWS])


METHODS: dict[str, Callable[[np.ndarray, RerankOptions], Iterator[Tensor]]] = {
    "query-expansion": _ranked_by_expansion,
    "augmentation": _ranked_by_augmentation,
    "k-reciprocal": _ranked_by_reciprocity,
}


def check_method(name: str) -> None:
    """Refuse the name of no method.

    Raises:
        ConfigError: it is none.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no re-ranking '{name}'.{suggestion(name, METHODS)}")


def reranked_metrics(
    embeddings: Tensor,
    labels: Tensor,
    method: str,
    options: RerankOptions | None = None,
    recall_at: Sequence[int] = metrics.RECALL_AT,
) -> dict[str, Any]:
    """The measures of `retrieval_metrics` after re-ranking, every sample a query against all others.

    Args:
        embeddings: [N, D], finite.
        labels: int64 [N].
        method: one of `METHODS`.
        options: of the method.
        recall_at: as of `retrieval_metrics`.

    Raises:
        ConfigError: an unknown method, or too many samples for it.
    """
    check_method(method)
    vectors = plain.prepared(embeddings.detach().float().cpu(), "cosine").numpy()
    labels = labels.cpu()
    parts, done = [], 0
    for s in METHODS[method](vectors, options or RerankOptions()):
        positive = labels[done : done + len(s), None] == labels  # [c, N]
        negatives = s.masked_fill(positive, -torch.inf).sort(dim=1).values
        own = torch.arange(len(s))
        positive[own, own + done] = False
        parts.append(plain.results(s, positive, negatives, list(recall_at)))
        done += len(s)
    return metrics.means(torch.cat(parts, 1).numpy(), list(recall_at))
