"""Which references are right answers to a query: those of its label, or those that share a label with it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dmlcore.data.label_sets import LabelSets
from dmlcore.ranks.dividing import DividedRows

Labels = Tensor | LabelSets
"""Of N samples: int64 `[N]`, or sets of labels."""


class Relevance:
    """Right answers among M references, looked up for some queries at a time, so that no matrix of all pairs is kept.

    Args:
        labels: of the queries.
        reference_labels: of the references, of the same kind.
        device: of what is returned.
    """

    def __init__(self, labels: Labels, reference_labels: Labels, device: torch.device) -> None:
        self._labels, self._reference_labels, self._device = labels, reference_labels, device
        self._holders = reference_labels.holders() if isinstance(reference_labels, LabelSets) else None

    def of(self, queries: Tensor) -> Tensor:
        """bool `[c, M]`: which references are relevant to some queries, int64 `[c]`. A query is relevant to itself."""
        if isinstance(self._labels, LabelSets):
            assert self._holders is not None
            sets = self._labels.select(queries.cpu().numpy())
            holders = self._holders.select(sets.index)
            rows = np.repeat(np.repeat(np.arange(len(sets)), sets.sizes), holders.sizes)
            relevant = np.zeros((len(sets), len(self._reference_labels)), dtype=bool)
            relevant[rows, holders.index] = True
            return torch.from_numpy(relevant).to(self._device)
        assert isinstance(self._reference_labels, Tensor)
        return self._labels[queries, None] == self._reference_labels


Rows = TypeVar("Rows", Tensor, LabelSets, Labels, Tensor | DividedRows)


def select(rows: Rows, positions: np.ndarray) -> Rows:
    """The labels or vectors of some samples, int64 `[m]`, in ascending order where ranks have divided them."""
    return rows[torch.from_numpy(positions).to(rows.device)] if isinstance(rows, Tensor) else rows.select(positions)
