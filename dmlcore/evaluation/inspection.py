"""What single queries find: their nearest neighbours, their measures, and which classes are taken for which. Means over all
queries are in `metrics.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmlcore import progress
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.plain import prepared

CELLS = 400_000_000  # similarities computed at most: those of 20,000 samples; of more samples, fewer are queries
FEWEST_QUERIES = 2_000
ROWS, TILE = 256, 16_384  # queries and references at a time: 16 MB


@dataclass(frozen=True)
class Inspection:
    """What queries find among all other samples, by their cosines.

    Attributes:
        queries: int64 [q], their positions among the N samples, ascending.
        neighbours: int64 [q, k], positions of the nearest others, the nearest first. k is below N.
        similarities: float32 [q, k], cosines with these.
        positives: int64 [q], R, how many others have the query's label.
        recall: float64 [q], 1 where the nearest has the query's label; NaN where R is 0.
        map_at_r: float64 [q], average precision cut after rank R; NaN where R is 0.
    """

    queries: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    positives: np.ndarray
    recall: np.ndarray
    map_at_r: np.ndarray


def inspect(embeddings: Tensor, labels: np.ndarray, k: int = 8, *, cells: int = CELLS) -> Inspection:
    """Look at every query by itself; of many samples, at an even sample of queries.

    Similarities pass in tiles, so no N x N matrix is kept. A negative exactly as similar as a positive comes first, as in
    `retrieval_metrics`.

    Args:
        embeddings: [N, D] floating point, finite, N >= 2.
        labels: int64 [N].
        k: neighbours of a query.
        cells: similarities computed at most, if that leaves `FEWEST_QUERIES` queries.
    """
    count = len(embeddings)
    k = min(k, count - 1)
    number = min(count, max(FEWEST_QUERIES, cells // count))
    queries = np.linspace(0, count - 1, number).round().astype(np.int64)
    x, _, metric = centred(embeddings.detach(), None, "cosine")
    x, units = prepared(x, metric), prepared(embeddings.detach(), "cosine")
    halves = x.square().sum(1) / 2 if metric == "euclidean" else None  # [N]
    dense = torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(-1)).to(x.device)
    others = torch.bincount(dense)[dense] - 1  # [N]
    parts = []
    chunks = torch.from_numpy(queries).to(x.device).split(ROWS)
    for rows in progress.track(chunks, "looking at queries", number, ROWS):
        wanted = others[rows]  # [c]
        nearest = _nearest(x, halves, dense, rows, max(k, int(wanted.max())))  # [c, K]
        recall, map_at_r = _scores(dense[nearest] == dense[rows, None], wanted)
        nearest = nearest[:, :k]
        cosines = torch.einsum("cd,ckd->ck", units[rows], units[nearest])
        parts.append([part.cpu().numpy() for part in (nearest, cosines.float(), wanted, recall, map_at_r)])
    return Inspection(queries, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nearest(x: Tensor, halves: Tensor | None, dense: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k rows most similar to each of some rows, themselves left out: [c, k]. References pass in tiles.

    Args:
        x: [N, D].
        halves: [N], taken from the products; None: nothing is.
        dense: int64 [N], labels.
        rows: int64 [c].
        k: below N.
    """
    low = x.new_tensor(-torch.inf)
    values, places = low.expand(len(rows), 0), rows.new_empty(len(rows), 0)
    for start in range(0, len(x), TILE):
        tile = slice(start, start + TILE)
        s = x[rows] @ x[tile].T  # [c, t]
        if halves is not None:
            s -= halves[tile]
        positive = dense[rows, None] == dense[tile]  # [c, t]
        s = torch.where(positive, torch.nextafter(s, low), s)
        own = (rows >= start) & (rows < start + s.shape[1])
        s[own, rows[own] - start] = low  # no query finds itself
        best = s.topk(min(k, s.shape[1]), dim=1)
        values, places = torch.cat([values, best.values], 1), torch.cat([places, best.indices + start], 1)
        best = values.topk(min(k, values.shape[1]), dim=1)
        values, places = best.values, places.gather(1, best.indices)
    return places


def _scores(is_hit: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Recall at 1 and MAP@R of rankings that are at least R long.

    Args:
        is_hit: bool [c, K], by rank.
        positives: int64 [c], R.
    """
    rank = torch.arange(1, is_hit.shape[1] + 1, device=is_hit.device)
    within = is_hit & (rank <= positives[:, None])  # [c, K]
    precision = within.cumsum(1).double() / rank
    map_at_r = (precision * within).sum(1) / positives.double()  # NaN for R = 0
    return torch.where(positives > 0, is_hit[:, 0].double(), torch.nan), map_at_r


@dataclass(frozen=True)
class ClassScores:
    """Means over the queries of each class that have something to find.

    Attributes:
        queries: int64 [C], how many were counted.
        recall: float64 [C], R@1; NaN where none was.
        map_at_r: float64 [C].
    """

    queries: np.ndarray
    recall: np.ndarray
    map_at_r: np.ndarray


def class_scores(inspection: Inspection, dense_labels: np.ndarray) -> ClassScores:
    """The measures of each class.

    Args:
        inspection: of N samples.
        dense_labels: int64 [N] in 0..C-1.
    """
    counted = inspection.positives > 0
    classes = dense_labels[inspection.queries[counted]]
    size = int(dense_labels.max()) + 1
    queries = np.bincount(classes, minlength=size)
    with np.errstate(invalid="ignore"):
        recall, map_at_r = (
            np.bincount(classes, weights=values[counted], minlength=size) / queries
            for values in (inspection.recall, inspection.map_at_r)
        )
    return ClassScores(queries, recall, map_at_r)


@dataclass(frozen=True)
class Confusion:
    """Queries of one class whose nearest neighbour is of another.

    Attributes:
        of: dense label of the queries.
        taken_for: dense label of their nearest neighbours.
        count: how many queries.
        share: of the class's queries that were looked at.
        examples: positions of a query and of its nearest neighbour, the most similar pair.
    """

    of: int
    taken_for: int
    count: int
    share: float
    examples: tuple[int, int]


def confusions(inspection: Inspection, dense_labels: np.ndarray, most: int = 12) -> list[Confusion]:
    """The pairs of classes that are taken for each other most often, the most frequent first."""
    nearest = inspection.neighbours[:, 0]
    of, taken_for = dense_labels[inspection.queries], dense_labels[nearest]
    sizes = np.bincount(of)
    wrong = np.flatnonzero(of != taken_for)
    pairs = Counter(zip(of[wrong].tolist(), taken_for[wrong].tolist(), strict=True))
    closest: dict[tuple[int, int], int] = {}
    for row in wrong[np.argsort(-inspection.similarities[wrong, 0], kind="stable")]:
        closest.setdefault((int(of[row]), int(taken_for[row])), int(row))
    ordered = sorted(pairs, key=lambda pair: (-pairs[pair], -pairs[pair] / sizes[pair[0]], pair))
    return [
        Confusion(
            *pair,
            pairs[pair],
            pairs[pair] / int(sizes[pair[0]]),
            (int(inspection.queries[closest[pair]]), int(nearest[closest[pair]])),
        )
        for pair in ordered[:most]
    ]
