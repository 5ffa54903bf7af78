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
from dmlcore.data.label_sets import LabelSets
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.plain import prepared
from dmlcore.evaluation.relevance import Relevance, select

CELLS = 400_000_000  # similarities computed at most: those of 20,000 samples; of more samples, fewer are queries
FEWEST_QUERIES = 2_000
ROWS, TILE = 256, 16_384  # queries and references at a time: 16 MB
BLOCK = 1 << 26  # pairs of which it is known at a time whether they belong together


@dataclass(frozen=True)
class Inspection:
    """What queries find among the other samples, by their cosines.

    Attributes:
        queries: int64 [q], their positions among the N samples, ascending.
        neighbours: int64 [q, k], positions of the nearest references, the nearest first. k is below N.
        similarities: float32 [q, k], cosines with these.
        is_right: bool [q, k], which of these have the query's label, or share one with it.
        positives: int64 [q], R, how many references do.
        recall: float64 [q], 1 where the nearest does; NaN where R is 0.
        map_at_r: float64 [q], average precision cut after rank R; NaN where R is 0.
    """

    queries: np.ndarray
    neighbours: np.ndarray
    similarities: np.ndarray
    is_right: np.ndarray
    positives: np.ndarray
    recall: np.ndarray
    map_at_r: np.ndarray


def inspect(
    embeddings: Tensor,
    labels: np.ndarray | LabelSets,
    k: int = 8,
    *,
    queries: np.ndarray | None = None,
    references: np.ndarray | None = None,
    cells: int = CELLS,
) -> Inspection:
    """Look at every query by itself; of many samples, at an even sample of queries.

    Similarities pass in tiles, so no N x N matrix is kept. A negative exactly as similar as a positive comes first, as in
    `retrieval_metrics`.

    Args:
        embeddings: [N, D] floating point, finite, N >= 2.
        labels: int64 [N], or sets of labels.
        k: neighbours of a query.
        queries: int64, positions of those that ask, ascending. None: all.
        references: int64, positions among which the answers are looked for, ascending, two at least. None: all.
        cells: similarities computed at most, if that leaves `FEWEST_QUERIES` queries.
    """
    everyone = np.arange(len(embeddings))
    queries = everyone if queries is None else queries
    among = everyone if references is None else references
    count = len(among)
    number = min(len(queries), max(FEWEST_QUERIES, cells // count))
    queries = queries[np.linspace(0, len(queries) - 1, number).round().astype(np.int64)]
    x, _, metric = centred(embeddings.detach(), None, "cosine")
    x, units = prepared(x, metric), prepared(embeddings.detach(), "cosine")
    theirs = x if references is None else x[torch.from_numpy(references).to(x.device)]  # [M, D]
    halves = theirs.square().sum(1) / 2 if metric == "euclidean" else None  # [M]
    of_all = torch.from_numpy(labels).to(x.device) if isinstance(labels, np.ndarray) else labels
    relevance = Relevance(of_all, select(of_all, among), x.device)
    place = torch.full((len(x),), -1, device=x.device)
    place[torch.from_numpy(among).to(x.device)] = torch.arange(count, device=x.device)
    most = count - int(np.isin(queries, among).any())  # a query does not find itself
    k = min(k, most)
    positions = torch.from_numpy(among).to(x.device)
    size = max(1, min(ROWS, BLOCK // count))
    parts = []
    for rows in progress.track(torch.from_numpy(queries).to(x.device).split(size), "looking at queries", number, size):
        relevant = relevance.of(rows)  # [c, M]
        own = place[rows]
        itself = (own >= 0).nonzero()[:, 0]
        relevant[itself, own[itself]] = False
        wanted = relevant.sum(1)  # [c]
        nearest = _nearest(x[rows], theirs, halves, relevant, own, max(k, min(int(wanted.max()), most)))  # [c, K]
        is_hit = relevant.gather(1, nearest)
        recall, map_at_r = _scores(is_hit, wanted)
        near = positions[nearest[:, :k]]
        cosines = torch.einsum("cd,ckd->ck", units[rows], units[near])
        parts.append([part.cpu().numpy() for part in (near, cosines.float(), is_hit[:, :k], wanted, recall, map_at_r)])
    return Inspection(queries, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nearest(queries: Tensor, x: Tensor, halves: Tensor | None, relevant: Tensor, own: Tensor, k: int) -> Tensor:
    """The k references most similar to each of some queries, themselves left out: [c, k]. References pass in tiles.

    Args:
        queries: [c, D].
        x: [M, D], references.
        halves: [M], taken from the products; None: nothing is.
        relevant: bool [c, M], which are right.
        own: int64 [c], the reference that is the query, or -1.
        k: below M, or M where no query is a reference.
    """
    low = x.new_tensor(-torch.inf)
    values, places = low.expand(len(queries), 0), own.new_empty(len(queries), 0)
    for start in range(0, len(x), TILE):
        tile = slice(start, start + TILE)
        s = queries @ x[tile].T  # [c, t]
        if halves is not None:
            s -= halves[tile]
        s = torch.where(relevant[:, tile], torch.nextafter(s, low), s)
        here = (own >= start) & (own < start + s.shape[1])
        s[here, own[here] - start] = low  # no query finds itself
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


def class_scores(inspection: Inspection, dense_labels: np.ndarray | LabelSets) -> ClassScores:
    """The measures of each class, or of each label: a query counts for all of its labels.

    Args:
        inspection: of N samples.
        dense_labels: int64 [N] in 0..C-1, or sets of labels.
    """
    counted = np.flatnonzero(inspection.positives > 0)
    if isinstance(dense_labels, LabelSets):
        sets, size = dense_labels.select(inspection.queries[counted]), dense_labels.count
        classes, counted = sets.index, np.repeat(counted, sets.sizes)
    else:
        classes, size = dense_labels[inspection.queries[counted]], int(dense_labels.max()) + 1
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
