"""Retrieval metrics of embeddings: checks of the input, and means over queries of what each finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import ConfigError, suggestion
from dmlcore.evaluation import plain
from dmlcore.evaluation.centring import centred
from dmlcore.evaluation.relevance import Labels
from dmlcore.kernels import neighbours
from dmlcore.losses.relations import label_matrix

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
    results, ks = rank(embeddings, labels, references, reference_labels, recall_at, metric=metric, own=own)
    return means(results, ks, references is not None)


def rank(
    embeddings: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int] | LabelSets,
    references: Tensor | np.ndarray | None = None,
    reference_labels: Tensor | np.ndarray | Sequence[int] | LabelSets | None = None,
    recall_at: Sequence[int] = RECALL_AT,
    *,
    metric: str = "cosine",
    own: Tensor | np.ndarray | Sequence[int] | None = None,
) -> tuple[np.ndarray, list[int]]:
    """What every query finds: the rows of `plain.rank_positives`, float64 [5 + K, N], and the K values of k. Arguments and
    errors as of `retrieval_metrics`, but that queries may have nothing to find."""
    ks = checked_ks(recall_at)
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}.{suggestion(str(metric), METRICS)}")
    x = _vectors(embeddings, "embeddings")
    y = _labels(labels, len(x), "labels", x.device)
    reference_vectors, reference_classes = None, None
    if references is not None or reference_labels is not None:
        x, reference_vectors, reference_classes = _with_references(x, references, reference_labels)
        _check_one_form(y, reference_classes)
    itself = None if own is None else _own(own, x, reference_vectors)
    with torch.no_grad():
        x, reference_vectors, metric = centred(x, reference_vectors, metric)
        if isinstance(y, Tensor) and not isinstance(reference_classes, LabelSets) and own is None and not neighbours.why_not(x):
            results = neighbours.rank_positives(x, y, reference_vectors, reference_classes, ks, metric)  # [5 + K, N]
        else:
            results = plain.rank_positives(x, y, reference_vectors, reference_classes, ks, metric, itself)
    return results.cpu().numpy(), ks


def _with_references(x: Tensor, references: Any, reference_labels: Any) -> tuple[Tensor, Tensor, Labels]:
    """Queries and references of one type on one device, and the references' labels."""
    if references is None or reference_labels is None:
        missing = "reference_labels" if reference_labels is None else "references"
        raise ConfigError(f"{missing} are missing; pass references and reference_labels together, or neither")
    vectors = _vectors(references, "references")
    if vectors.shape[1] != x.shape[1]:
        raise ConfigError(f"embeddings have {x.shape[1]} dimensions and references {vectors.shape[1]}; they must agree")
    if vectors.device != x.device:
        raise ConfigError(f"embeddings are on {x.device} and references on {vectors.device}; move them to one device")
    labels = _labels(reference_labels, len(vectors), "reference_labels", x.device)
    dtype = torch.promote_types(x.dtype, vectors.dtype)
    return x.to(dtype), vectors.to(dtype), labels


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


def _vectors(values: Any, name: str) -> Tensor:
    try:
        x = values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a tensor or array of numbers: {str(error).splitlines()[0]}") from None
    x = x.detach()
    if x.ndim != 2:
        raise ConfigError(f"{name} must have the shape [N, D], got {list(x.shape)}")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ConfigError(f"{name} are empty: shape {list(x.shape)}")
    if x.is_complex() or x.dtype == torch.bool:
        raise ConfigError(f"{name} must be real numbers, got {x.dtype}")
    if x.dtype not in neighbours.NUMBER_TYPES:
        x = x.float()
    if not bool(torch.isfinite(x.sum())):  # may be an overflow of the sum alone
        broken = (~torch.isfinite(x).all(1)).nonzero()[:, 0]
        if len(broken):
            where = f"{len(broken)} of {len(x)} rows, the first is row {int(broken[0])}"
            raise ConfigError(f"{name} hold NaN or infinite values in {where}")
    return x


def _check_one_form(labels: Labels, reference_labels: Labels) -> None:
    forms = [
        f"sets of {side.count} labels" if isinstance(side, LabelSets) else "one each" for side in (labels, reference_labels)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(f"labels are {forms[0]} and reference_labels {forms[1]}; both must be of one form")


def _own(values: Any, x: Tensor, references: Tensor | None) -> Tensor:
    """Which reference each query is, int64 [N]."""
    if references is None:
        raise ConfigError("own says which reference a query is; it needs references")
    own = _labels(values, len(x), "own", x.device)
    if isinstance(own, LabelSets) or bool(((own < -1) | (own >= len(references))).any()):
        raise ConfigError(f"own must hold -1 or numbers of the {len(references)} references")
    return own


def _labels(values: Any, count: int, name: str, device: torch.device) -> Labels:
    if isinstance(values, LabelSets):
        if len(values) != count:
            raise ConfigError(f"{name} must be of {count} samples, got {len(values)}")
        return values
    try:
        y = values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be whole numbers: {str(error).splitlines()[0]}") from None
    if y.ndim == 2 and len(y) == count and (y.shape[1] > 1 or y.dtype == torch.bool):
        return LabelSets.of_matrix(label_matrix(y, name).cpu().numpy())
    if y.ndim != 1 or len(y) != count:
        raise ConfigError(f"{name} must have the shape [{count}], one per row, got {list(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise ConfigError(f"{name} must be whole numbers, got {y.dtype}; make them int64 where they come from")
    return y.detach().to(device, torch.int64)  # uint64 wraps around, which keeps different labels different
