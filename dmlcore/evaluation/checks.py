"""Checks of what is ranked: vectors, labels, and which reference a query is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import ConfigError, first_line
from dmlcore.evaluation.relevance import Labels
from dmlcore.kernels import neighbours
from dmlcore.losses.relations import label_matrix
from dmlcore.ranks import Layout


def checked_vectors(values: Any, name: str, *, may_be_empty: bool = False) -> Tensor:
    """Vectors float32 or float64 [N, D] without history.

    Args:
        values: a tensor or array.
        name: for messages.
        may_be_empty: there may be no rows, since other ranks have some.
    """
    try:
        x = values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a tensor or array of numbers: {first_line(error)}") from None
    x = x.detach()
    if x.ndim != 2:
        raise ConfigError(f"{name} must have the shape [N, D], got {list(x.shape)}")
    if (x.shape[0] == 0 and not may_be_empty) or x.shape[1] == 0:
        raise ConfigError(f"{name} are empty: shape {list(x.shape)}")
    if x.is_complex() or x.dtype == torch.bool:
        raise ConfigError(f"{name} must be real numbers, got {x.dtype}")
    if x.dtype not in neighbours.NUMBER_TYPES:
        x = x.float()
    return x


def check_finite(x: Tensor, name: str, layout: Layout | None = None) -> None:
    """Refuse vectors with NaN or infinite values, on all ranks where one has some.

    Args:
        x: [N, D].
        name: for messages.
        layout: whose rows are whose, where ranks have divided them.
    """
    broken = torch.empty(0, dtype=torch.int64)
    if not bool(torch.isfinite(x.sum())):  # may be an overflow of the sum alone
        broken = (~torch.isfinite(x).all(1)).nonzero()[:, 0]
    count, first, rows = len(broken), int(broken[0]) if len(broken) else 0, len(x)
    if layout is not None:
        table = layout.group.all_gather(torch.tensor([[count, first + layout.first]], device=x.device)).tolist()
        count, rows = sum(row[0] for row in table), sum(layout.sizes)
        first = next((row[1] for row in table if row[0]), 0)
    if count:
        raise ConfigError(f"{name} hold NaN or infinite values in {count} of {rows} rows, the first is row {first}")


def check_one_form(labels: Labels, reference_labels: Labels) -> None:
    """Refuse labels of queries and references of different forms."""
    forms = [
        f"sets of {side.count} labels" if isinstance(side, LabelSets) else "one each" for side in (labels, reference_labels)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(f"labels are {forms[0]} and reference_labels {forms[1]}; both must be of one form")


def checked_own(values: Any, x: Tensor, count: int | None) -> Tensor:
    """Which of `count` references each query is, int64 [N]."""
    if count is None:
        raise ConfigError("own says which reference a query is; it needs references")
    own = checked_labels(values, len(x), "own", x.device)
    if isinstance(own, LabelSets) or bool(((own < -1) | (own >= count)).any()):
        raise ConfigError(f"own must hold -1 or numbers of the {count} references")
    return own


def checked_labels(values: Any, count: int, name: str, device: torch.device) -> Labels:
    """Labels int64 [N], or the sets of a matrix of 0 and 1."""
    if isinstance(values, LabelSets):
        if len(values) != count:
            raise ConfigError(f"{name} must be of {count} samples, got {len(values)}")
        return values
    try:
        y = values if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be whole numbers: {first_line(error)}") from None
    if y.ndim == 2 and len(y) == count and (y.shape[1] > 1 or y.dtype == torch.bool):
        return LabelSets.of_matrix(label_matrix(y, name).cpu().numpy())
    if y.ndim != 1 or len(y) != count:
        raise ConfigError(f"{name} must have the shape [{count}], one per row, got {list(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise ConfigError(f"{name} must be whole numbers, got {y.dtype}; make them int64 where they come from")
    return y.detach().to(device, torch.int64)  # uint64 wraps around, which keeps different labels different


def with_references(x: Tensor, references: Any, reference_labels: Any) -> tuple[Tensor, Tensor, Labels]:
    """Queries and references of one type on one device, and the references' labels."""
    if references is None or reference_labels is None:
        missing = "reference_labels" if reference_labels is None else "references"
        raise ConfigError(f"{missing} are missing; pass references and reference_labels together, or neither")
    vectors = checked_vectors(references, "references")
    check_finite(vectors, "references")
    if vectors.shape[1] != x.shape[1]:
        raise ConfigError(f"embeddings have {x.shape[1]} dimensions and references {vectors.shape[1]}; they must agree")
    if vectors.device != x.device:
        raise ConfigError(f"embeddings are on {x.device} and references on {vectors.device}; move them to one device")
    labels = checked_labels(reference_labels, len(vectors), "reference_labels", x.device)
    dtype = torch.promote_types(x.dtype, vectors.dtype)
    return x.to(dtype), vectors.to(dtype), labels
