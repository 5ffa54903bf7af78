"""Measures of rankings that know coarser labels: a wrong species of the right family is less wrong."""

from __future__ import annotations

import torch
from torch import Tensor

import dmlcore
from dmlcore.evaluation import Metric
from dmlcore.losses import unit

SIMILARITIES = 1 << 22  # held at a time


class Hierarchical(Metric):
    """Hierarchical average precision and NDCG. Every sample is a query against all others, ranked by cosine, or each query
    against the gallery where the data have these.

    A reference that agrees with the query at `l` of `L` levels has the relevance `rel = (l / L) / (how many agree at l)`.

    `h_ap = sum_k H-rank(k) / rank(k) / sum_k rel(k)` over the references k with `l > 0`, where `H-rank(k)` is the sum of
    `min(rel(k), rel(j))` over those that are ranked no later than k. With one level it is the average precision.
    `ndcg` has the gains `2^l - 1` and the discount `1 / log2(1 + rank)`. Among references of equal similarity the least
    relevant comes first. O(N^2 (D + L)) time, bounded memory.

    Source: Ramzi, Audebert, Thome, Rambour, Bitot, "Hierarchical Average Precision Training for Pertinent Image Retrieval",
    ECCV 2022, with alpha = 1. Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """

    name = "hierarchical"
    takes_levels = True
    takes_roles = True

    def __call__(
        self, embeddings: Tensor, labels: Tensor, queries: Tensor | None = None, references: Tensor | None = None
    ) -> dict[str, float]:
        levels = labels if labels.ndim == 2 else labels[:, None]  # [N, L]
        x = unit(embeddings)
        everyone = torch.arange(len(x), device=x.device)
        queries, references = (everyone if part is None else part for part in (queries, references))
        values: list[Tensor] = []
        for rows in queries.split(max(1, SIMILARITIES // max(len(references), 1))):
            agreed = (levels[rows, None] == levels[references][None]).sum(2)  # [c, M]
            s = x[rows] @ x[references].T
            own = references == rows[:, None]
            # A query itself comes last and is worth nothing, which is as if it were not there.
            values.append(_measures(s.masked_fill(own, -torch.inf), agreed.masked_fill(own, 0), levels.shape[1]))  # [c, 2]
        measured = torch.cat(values) if values else torch.zeros(0, 2)
        means = measured[~measured[:, 0].isnan()].mean(0)
        return {"h_ap": float(means[0]), "ndcg": float(means[1])}


def _measures(s: Tensor, agreed: Tensor, levels: int) -> Tensor:
    """H-AP and NDCG of some queries, float64 [c, 2]; NaN for a query that agrees with nobody.

    Args:
        s: [c, M] similarities.
        agreed: int64 [c, M], at how many levels each reference agrees.
        levels: L.
    """
    agreed, order = agreed.sort(dim=1, stable=True)  # the least relevant of equals first
    agreed = agreed.gather(1, s.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = torch.arange(1, agreed.shape[1] + 1, device=s.device)
    counts = torch.stack([(agreed == level).sum(1) for level in range(levels + 1)], 1).double()  # [c, L + 1]
    share = torch.arange(levels + 1, dtype=torch.float64, device=s.device) / levels
    relevance = torch.where(counts > 0, share / counts.clamp_min(1), 0.0)  # [c, L + 1]
    own = relevance.gather(1, agreed)  # [c, M]
    h_rank = torch.zeros_like(own)
    for level in range(1, levels + 1):
        h_rank += torch.minimum(own, relevance[:, level, None]) * (agreed == level).cumsum(1)
    h_ap = (h_rank / rank).sum(1) / own.sum(1)
    gains, discount = 2.0 ** agreed.double() - 1, 1 / torch.log2(1 + rank.double())
    ndcg = (gains * discount).sum(1) / (gains.sort(dim=1, descending=True).values * discount).sum(1)
    return torch.stack([h_ap, ndcg], 1)


@dmlcore.hookimpl
def dmlcore_metrics() -> list[type]:
    return [Hierarchical]
