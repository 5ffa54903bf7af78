"""Measures of a number of nearest neighbours: a vote of k, and average precision cut at a depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.evaluation import Metric
from dmlcore.losses import unit

SIMILARITIES = 1 << 22  # held at a time


class Knn(Metric):
    """Accuracy of a vote of the k nearest references, and mean average precision at a depth, by cosine.

    `accuracy`: share of queries whose label most of their k nearest references have. Of labels with equally many votes the one
    with the nearest reference wins. `map@DEPTH = mean over queries of sum_(i <= depth) P(i) rel(i) / min(depth, R)`, where R is
    the number of a query's right answers, `rel(i)` says whether the i-th reference is one, and `P(i)` is the precision among
    the first i. Queries without a right answer do not count. Of equally similar references the wrong ones come first. O(Q M D)
    time, bounded memory.

    Source: Weyand, Araujo, Cao, Sim, "Google Landmarks Dataset v2", CVPR 2020, section 4.1, for the average precision.
    """

    name = "knn"
    takes_roles = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `knn`."""

        k: int = 5
        """Neighbours that vote, >= 1."""
        depth: int = 1000
        """References that count for the average precision, >= 1."""

        def __post_init__(self) -> None:
            check_range("k", self.k, least=1)
            check_range("depth", self.depth, least=1)

    def __call__(
        self, embeddings: Tensor, labels: Tensor, queries: Tensor | None = None, references: Tensor | None = None
    ) -> dict[str, float]:
        x = unit(embeddings)
        everyone = torch.arange(len(x), device=x.device)
        queries, references = (everyone if part is None else part for part in (queries, references))
        theirs, their_labels = x[references], labels[references]
        low = x.new_tensor(-torch.inf)
        right, precision = [], []
        for rows in queries.split(max(1, SIMILARITIES // max(len(references), 1))):
            s = x[rows] @ theirs.T  # [c, M]
            is_right = labels[rows, None] == their_labels
            own = references == rows[:, None]
            s = torch.where(is_right, torch.nextafter(s, low), s).masked_fill(own, low)
            count = (is_right & ~own).sum(1)
            nearest = s.topk(min(max(self.options.k, self.options.depth), s.shape[1]), dim=1)
            is_there = nearest.values > low  # the query itself comes last
            hits = is_right.gather(1, nearest.indices) & is_there  # [c, K]
            votes = _winners(their_labels[nearest.indices][:, : self.options.k], is_there[:, : self.options.k])
            right.append((votes == labels[rows])[count > 0])
            precision.append(_average_precision(hits[:, : self.options.depth], count)[count > 0])
        return {"accuracy": _mean(right), f"map@{self.options.depth}": _mean(precision)}


def _winners(labels: Tensor, counts: Tensor) -> Tensor:
    """The label of each row that occurs most often, the first of several: int64 [c].

    Args:
        labels: int64 [c, k], by rank, k >= 1.
        counts: bool [c, k], which of them vote.
    """
    votes = ((labels[:, :, None] == labels[:, None]) & counts[:, None]).sum(2)  # [c, k]
    votes = torch.where(counts, votes, 0)
    rank = torch.arange(labels.shape[1], device=labels.device)
    best = (votes * (len(rank) + 1) - rank).argmax(1, keepdim=True)
    return labels.gather(1, best)[:, 0]


def _average_precision(hits: Tensor, count: Tensor) -> Tensor:
    """Average precision of rankings that are cut, float64 [c].

    Args:
        hits: bool [c, K], by rank.
        count: int64 [c], right answers in all.
    """
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (hits.cumsum(1).double() / rank * hits).sum(1) / count.clamp(1, max(hits.shape[1], 1))


def _mean(parts: list[Tensor]) -> float:
    values = torch.cat(parts).double() if parts else torch.zeros(0)
    return float(values.mean())  # NaN of none


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Knn]
