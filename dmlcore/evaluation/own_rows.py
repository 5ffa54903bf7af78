"""The rows of several ranks, each of which gives its own, as one matrix that they have divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.evaluation.checks import checked_vectors
from dmlcore.ranks import Group, Layout, exchange, gathered
from dmlcore.ranks.dividing import DividedRows


def divide(
    group: Group, embeddings: Any, labels: Any, references: Any, reference_labels: Any, own: Any
) -> tuple[DividedRows, Tensor, DividedRows | None, Tensor | None, Tensor | None]:
    """What every rank gives, put together. Arguments as of `retrieval_metrics`, of this rank; a rank may have no rows.

    Returns:
        Queries, the labels of all, references or None, the labels of all or None, and which reference each query is or None.

    Raises:
        ConfigError: a rank gives something wrong, or something else than the others.
    """
    error: DmlcoreError | None = None
    sides: list[tuple[Tensor, Tensor]] = []
    itself, form = None, ""
    try:
        sides.append(_side(embeddings, labels, "embeddings", "labels"))
        if references is not None or reference_labels is not None:
            sides.append(_side(references, reference_labels, "references", "reference_labels"))
            if sides[0][0].shape[1] != sides[1][0].shape[1]:
                widths = " and references ".join(str(x.shape[1]) for x, _ in sides)
                raise ConfigError(f"embeddings have {widths} dimensions; they must agree")
            dtype = torch.promote_types(sides[0][0].dtype, sides[1][0].dtype)
            sides = [(x.to(dtype), y) for x, y in sides]
        if own is not None:
            if len(sides) == 1:
                raise ConfigError("own says which reference a query is; it needs references")
            itself = torch.as_tensor(np.asarray(own) if not isinstance(own, Tensor) else own).long().to(sides[0][0].device)
        form = "; ".join(f"vectors of {x.shape[1]} ({x.dtype}) with labels {list(y.shape[1:])} ({y.dtype})" for x, y in sides)
        form += "; own" if own is not None else ""
    except DmlcoreError as caught:  # the others would wait
        error = caught
    counts = tuple(len(x) for x, _ in sides)
    device = sides[0][0].device if sides else torch.device("cpu")
    layouts = exchange(group, (*counts, *[0] * (2 - len(counts))), form, device, error)
    divided = [DividedRows(x, layout) for (x, _), layout in zip(sides, layouts, strict=False)]
    classes = [gathered([y], layout)[0] for (_, y), layout in zip(sides, layouts, strict=False)]
    if itself is not None:
        itself = _all_own(itself, layouts[0], layouts[1])
    if len(sides) == 1:
        return divided[0], classes[0], None, None, itself
    return divided[0], classes[0], divided[1], classes[1], itself


def _side(vectors: Any, labels: Any, name: str, name_of_labels: str) -> tuple[Tensor, Tensor]:
    if vectors is None or labels is None:
        raise ConfigError(f"{name if vectors is None else name_of_labels} are missing; give both, on every rank")
    if isinstance(labels, LabelSets):
        raise ConfigError(f"{name_of_labels} of several ranks must be a matrix of 0 and 1, not LabelSets")
    x = checked_vectors(vectors, name, may_be_empty=True)
    y = labels if isinstance(labels, Tensor) else torch.as_tensor(np.ascontiguousarray(labels))
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise ConfigError(f"{name_of_labels} must have one row for each of the {len(x)} {name}, got the shape {list(y.shape)}")
    return x, y.detach().to(x.device)


def _all_own(own: Tensor, layout: Layout, of_references: Layout) -> Tensor:
    return gathered([torch.where(own < 0, own, own + of_references.first)], layout)[0]
