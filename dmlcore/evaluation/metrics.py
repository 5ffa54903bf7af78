"""Retrieval metrics of embeddings: checks of the input, and means over queries of what each finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import ConfigError, suggestion
from dmlcore.evaluation import divided, plain
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.checks import (
    check_finite,
    check_one_form,
    checked_labels,
    checked_own,
    checked_vectors,
    with_references,
)
from dmlcore.evaluation.own_rows import divide
from dmlcore.kernels import neighbours
from dmlcore.losses.gathering import check_group
from dmlcore.ranks.dividing import DividedRows

METRICS = ("cosine", "dot", "euclidean")
RECALL_AT = (1, 2, 4, 8)


def retrieval_metrics(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int] | LabelSets,
    references: Tensor | np.ndarray | None = None,
    reference_labels: Tensor | np.ndarray | Sequence[int] | LabelSets | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    *,
    metric: str = "cosine",
    own: Tensor | np.ndarray | Sequence[int] | None = None,
    process_group: Any = None,
) -> dict[str, float]:
    """How often the nearest neighbours of a sample have its label.

    Without `references` every sample is a query against all others. The references with a query's label are its positives, and
    where samples have several labels, those that share at least one with it. The
    results are exact: the whole ranking counts, and memory stays bounded. If a negative is exactly as similar as a positive,
    the negative comes first, so collapsed embeddings score lowest. A common offset of all vectors costs no digits: Euclidean
    distances are computed without it, and so are cosines of vectors that all point into a narrow cone.

    Args:
        embeddings: `[N, D]` finite numbers. float16 and bfloat16 are compared in float32.
        labels: `[N]` integers within int64; or several of each sample: a matrix `[N, L]` of 0 and 1, or `LabelSets`.
        references: `[M, D]`, or None: the other samples. A query that is among the references finds itself, unless `own` tells.
        reference_labels: of `M` references, of the same form, or None with `references`.
        recall_at: the values of k, each >= 1. Values above the number of references have no meaning.
        metric: `cosine` (a zero vector stays zero), `dot` or `euclidean`.
        own: `[N]` integers, which reference is the query itself and does not count, or -1. Needs references.
        process_group: ranks that each give their own rows and labels, and of which all get the numbers of one process with the
            rows of all, one rank's behind another's: `world`, a `ProcessGroup`, a `DeviceMesh` of one dimension, or a
            `dmlcore.ranks.Group`. `own` counts among this rank's references. None: this process is alone.

    Returns:
        Numbers by name: means over the queries that have positives, and two counts. R is a query's number of positives.

        - `recall@k`: share of queries with a positive among their k nearest.
        - `precision@k`, `r_precision`: share of positives among the k nearest, and among the R nearest.
        - `map@r`: average precision, cut after rank R.
        - `map`: average precision.
        - `mrr`: 1 / rank of the first positive.
        - `queries`, `excluded`: how many queries have a positive, and how many have none.

    Raises:
        ConfigError: a wrong shape, type or option, a value that is not finite, or no query with a positive.

    Source: R-precision and MAP@R as in Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020, section 3.2.
    """
    group = check_group(process_group)
    if group is not None and group.size > 1:
        whole = divide(group, embeddings, labels, references, reference_labels, own)
        results, ks = rank(*whole[:4], recall_at, metric=metric, own=whole[4])
        return means(results, ks, references is not None)
    results, ks = rank(embeddings, labels, references, reference_labels, recall_at, metric=metric, own=own)
    return means(results, ks, references is not None)


def rank(
    embeddings: Tensor | np.ndarray | DividedRows,
    labels: Tensor | np.ndarray | Sequence[int] | LabelSets,
    references: Tensor | np.ndarray | DividedRows | None = None,
    reference_labels: Tensor | np.ndarray | Sequence[int] | LabelSets | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    *,
    metric: str = "cosine",
    own: Tensor | np.ndarray | Sequence[int] | None = None,
) -> tuple[np.ndarray, list[int]]:
    """What every query finds: the rows of `plain.rank_positives`, float64 [5 + K, N], and the K values of k. Arguments and
    errors as of `retrieval_metrics`, but that queries may have nothing to find, and that ranks may have divided the vectors.
    Labels are then of all rows."""
    ks = checked_ks(recall_at)
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}.{suggestion(str(metric), METRICS)}")
    if isinstance(embeddings, DividedRows):
        return _rank_divided(embeddings, labels, references, reference_labels, ks, metric, own)
    x = checked_vectors(embeddings, "embeddings")
    check_finite(x, "embeddings")
    y = checked_labels(labels, len(x), "labels", x.device)
    reference_vectors, reference_classes = None, None
    if references is not None or reference_labels is not None:
        x, reference_vectors, reference_classes = with_references(x, references, reference_labels)
        check_one_form(y, reference_classes)
    itself = None if own is None else checked_own(own, x, None if reference_vectors is None else len(reference_vectors))
    with torch.no_grad():
        x, reference_vectors, metric = centred(x, reference_vectors, metric)
        if isinstance(y, Tensor) and not isinstance(reference_classes, LabelSets) and own is None and not neighbours.why_not(x):
            results = neighbours.rank_positives(x, y, reference_vectors, reference_classes, ks, metric)  # [5 + K, N]
        else:
            results = plain.rank_positives(x, y, reference_vectors, reference_classes, ks, metric, itself)
    return results.cpu().numpy(), ks


def _rank_divided(
    embeddings: DividedRows, labels: Any, references: Any, reference_labels: Any, ks: list[int], metric: str, own: Any
) -> tuple[np.ndarray, list[int]]:
    """The same where ranks have divided the vectors. Labels and `own` are of all rows."""
    sides = {"embeddings": embeddings} | ({} if references is None else {"references": references})
    for name, side in sides.items():
        check_finite(side.own, name, side.layout)
    device = embeddings.own.device
    y = checked_labels(labels, len(embeddings), "labels", device)
    theirs = None
    if references is not None:
        theirs = checked_labels(reference_labels, len(references), "reference_labels", device)
        check_one_form(y, theirs)
    count = None if references is None else len(references)
    itself = None if own is None else checked_own(own, torch.empty(len(embeddings), 0, device=device), count)
    with torch.no_grad():
        results = divided.rank_positives(embeddings, y, references, theirs, ks, metric, itself)
    return results.cpu().numpy(), ks


def by_query(results: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """The measures of each query by name, float64 [N]: NaN for one that has no positive.

    Args:
        results: the rows of `plain.rank_positives`, [5 + K, N].
        ks: the K values of k.
    """
    positives, first = results[0], np.where(results[0] > 0, results[1], np.nan)
    values = {f"recall@{k}": np.where(positives > 0, first <= k, np.nan) for k in ks}
    values |= {f"precision@{k}": hits / k for k, hits in zip(ks, results[5:], strict=True)}
    values |= {"r_precision": results[2], "map@r": results[3], "map": results[4]}
    return {name: np.where(positives > 0, rows, np.nan) for name, rows in {**values, "mrr": 1 / first}.items()}


def means(results: np.ndarray, ks: list[int], has_references: bool = False) -> dict[str, float]:
    """Means over the queries that have a positive, from the rows of `plain.rank_positives`: `[5 + K, N]`."""
    counted = results[0] > 0
    queries = int(counted.sum())
    if queries == 0 and has_references:
        raise ConfigError("no query has a positive: references share no label with the queries; see whether both count alike")
    if queries == 0:
        raise ConfigError("no query has a positive: every label occurs once; pass at least two samples of some class")
    if queries < len(counted):
        results = results[:, counted]
    values = {name: float(rows.mean()) for name, rows in by_query(results, ks).items()}
    return values | {"queries": float(queries), "excluded": float(len(counted) - queries)}


def checked_ks(recall_at: Any) -> list[int]:
    """The different values of k.

    Raises:
        ConfigError: one is no whole number of at least 1.
    """
    try:
        ks = list(recall_at)
    except TypeError:
        raise ConfigError(f"recall_at must be a list of whole numbers, got {recall_at!r}") from None
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k < 2**62:
            raise ConfigError(f"recall_at must hold whole numbers of at least 1, got {k!r}")
    return list(dict.fromkeys(int(k) for k in ks))
