"""Why a step is not finite: which loss, which rows of the batch, or the embeddings before any loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlcore.training.measurements import StepRecord

if TYPE_CHECKING:
    from dmlcore.ensemble import LossEnsemble

SHOWN = 5  # rows that a message names


def why_not_finite(record: StepRecord, ensemble: LossEnsemble, embeddings: Tensor, labels: Tensor) -> str:
    """Why the optimiser must not take this step; empty where every number is finite.

    Args:
        record: numbers of the step.
        ensemble: the losses.
        embeddings: [B, D] that the losses saw, after backward.
        labels: [B].
    """
    numbers = (record.total, *record.gradient_norms.values(), *record.terms.values())
    if all(map(_is_finite, numbers)):
        return ""
    names, size = ", ".join(record.terms), len(labels)
    rows = _rows_with_non_finite(embeddings.detach())
    if rows:
        return f"the embeddings of {_describe_rows(rows, size)} are not finite, before any loss (losses: {names})"
    terms = {name: value for name, value in record.terms.items() if not _is_finite(value)}
    if terms:
        with torch.no_grad():
            rows_of = ensemble.non_finite_rows(embeddings.detach(), labels)
        return "; ".join(
            f"loss '{name}' is {value} ({_describe_rows(rows_of.get(name, []), size)})" for name, value in terms.items()
        )
    if not _is_finite(record.total):
        return f"the weighted sum is {record.total} though every loss is finite ({names})"
    rows = [] if embeddings.grad is None else _rows_with_non_finite(embeddings.grad)
    return f"the gradient is not finite though every loss is ({names}; {_describe_rows(rows, size)})"


def _is_finite(value: float) -> bool:
    return value - value == 0


def _rows_with_non_finite(matrix: Tensor) -> list[int]:
    return (~torch.isfinite(matrix).all(dim=1)).nonzero().flatten().tolist()


def _describe_rows(rows: list[int], size: int) -> str:
    if not rows:
        return f"no single row of {size}"
    shown = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
    return f"row{'s' if len(rows) > 1 else ''} {shown} of {size}"
