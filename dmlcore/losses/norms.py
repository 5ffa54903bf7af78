"""What the regularisers of raw norms share. They look at no pairs and no labels."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from dmlcore.losses.base import Loss, check_inputs


class NormLoss(Loss):
    """A term per sample that depends on its raw embedding alone, mean over samples. Subclasses write `values`.

    Usable as a loss and as a member of an ensemble; labels and references are checked and not used.
    """

    needs_norms = True

    @abc.abstractmethod
    def values(self, embeddings: Tensor, update: bool) -> Tensor:
        """One value per sample.

        Args:
            embeddings: `[B, D]` raw, float32 or float64.
            update: whether running statistics, if there are any, may move.

        Returns:
            `[B]`.
        """

    @property
    def why_not_fused(self) -> str:
        return f"'{self.name}' depends on norms alone and takes no part in the pass over pairs"

    def _reduced(self, embeddings: Tensor, labels: Tensor, update: bool, **others: Any) -> Tensor:
        check_inputs(embeddings, labels, others.get("references"), others.get("reference_labels"), others.get("relation"))
        with torch.autocast(embeddings.device.type, enabled=False):
            values = self.values(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), update)
        if self.options.reduction == "none":
            return values
        return values.sum() if self.options.reduction == "sum" else values.sum() / max(len(values), 1)

    def forward(self, embeddings: Tensor, labels: Tensor, **others: Any) -> Tensor:
        return self._reduced(embeddings, labels, self.training, **others)

    def reference(self, embeddings: Tensor, labels: Tensor, **others: Any) -> Tensor:
        return self._reduced(embeddings, labels, False, **others)
