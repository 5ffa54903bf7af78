"""What the queries of a part of the data find, one by one: their measures, and the wrong answer nearest to each. Their nearest
neighbours, right or wrong, are in `inspection.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dmlcore import progress
from dmlcore.data.label_sets import LabelSets
from dmlcore.evaluation import metrics, plain
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.relevance import Labels, Relevance, select
from dmlcore.ranks.dividing import DividedRows

if TYPE_CHECKING:
    from dmlcore.data import LabelledDataset


@dataclass(frozen=True)
class QueryScores:
    """The measures of Q queries.

    Attributes:
        queries: int64 [Q], their positions in the data set.
        positives: int64 [Q], R, how many references are right answers.
        values: float64 [Q] by name, as `retrieval_metrics` calls them; NaN where R is 0.
        means: over the queries with R > 0, with `queries` and `excluded`, their number and that of the others.
    """

    queries: np.ndarray
    positives: np.ndarray
    values: dict[str, np.ndarray]
    means: dict[str, float]


def relevant_labels(dataset: LabelledDataset) -> Labels:
    """By which labels an answer is right: one of each sample, or the sets of those that count."""
    return torch.from_numpy(dataset.labels) if dataset.sets is None else dataset.judged_sets()


def rank_queries(
    embeddings: Tensor | DividedRows, dataset: LabelledDataset, recall_at: Sequence[int] = metrics.RECALL_AT
) -> QueryScores:
    """Rank the references of a data set for each of its queries. One that is a reference too does not find itself.

    Args:
        embeddings: [N, D]; where ranks have divided them, all ranks call this, and have all scores.
        dataset: N samples, at least one of which has something to find.
        recall_at: the values of k.
    """
    labels = relevant_labels(dataset)
    if not isinstance(labels, LabelSets):
        labels = labels.to(embeddings.own.device if isinstance(embeddings, DividedRows) else embeddings.device)
    queries, references = dataset.queries, dataset.references
    if dataset.roles is None:
        results, ks = metrics.rank(embeddings, labels, recall_at=recall_at)
    else:
        is_both = np.isin(queries, references)
        results, ks = metrics.rank(
            select(embeddings, queries),
            select(labels, queries),
            select(embeddings, references),
            select(labels, references),
            recall_at,
            own=np.where(is_both, np.searchsorted(references, queries), -1) if is_both.any() else None,
        )
    means = metrics.means(results, ks, dataset.roles is not None)
    return QueryScores(queries, results[0].astype(np.int64), metrics.by_query(results, ks), means)


def nearest_wrong(embeddings: Tensor, dataset: LabelledDataset) -> tuple[np.ndarray, np.ndarray]:
    """The reference nearest to each query that is no right answer, nor the query itself.

    Args:
        embeddings: [N, D].
        dataset: N samples.

    Returns:
        int64 [Q], positions in the data set, -1 where every reference is right; float32 [Q], cosines with these.
    """
    labels = relevant_labels(dataset)
    labels = labels if isinstance(labels, LabelSets) else labels.to(embeddings.device)
    x, _, metric = centred(embeddings.detach().float(), None, "cosine")  # where cosines are too alike to be told apart
    x, units = plain.prepared(x, metric), plain.prepared(embeddings.detach().float(), "cosine")
    queries, references = (torch.from_numpy(part).to(x.device) for part in (dataset.queries, dataset.references))
    theirs = x[references]  # [M, D]
    halves = theirs.square().sum(1) / 2 if metric == "euclidean" else 0.0
    relevance = Relevance(labels, select(labels, dataset.references), x.device)
    positions, cosines = [], []
    size = max(1, plain.CHUNK_CELLS // len(references))
    for rows in progress.track(queries.split(size), "looking for wrong answers", len(queries), size):
        s = x[rows] @ theirs.T - halves  # [c, M]
        s.masked_fill_(relevance.of(rows) | (references == rows[:, None]), -torch.inf)
        best = s.max(1)
        nearest = references[best.indices]
        cosines.append((units[rows] * units[nearest]).sum(1))
        positions.append(torch.where(best.values > -torch.inf, nearest, -1))
    return torch.cat(positions).cpu().numpy(), torch.cat(cosines).cpu().numpy()
