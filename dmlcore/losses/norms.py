"""What the regularisers of raw norms share. They look at no pairs and no labels."""

from __future__ import annotations

import abc
from typing import Unpack

import torch
from torch import Tensor

from dmlcore.losses.base import Against, Loss
from dmlcore.losses.comparison import Comparison, compare


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

    def _reduced(self, embeddings: Tensor, update: bool) -> Tensor:
        with torch.autocast(embeddings.device.type, enabled=False):
            values = self.values(embeddings if embeddings.dtype == torch.float64 else embeddings.float(), update)
        if self.options.reduction == "none":
            return values
        return values.sum() if self.options.reduction == "sum" else values.sum() / max(len(values), 1)

    def value_of(self, comparison: Comparison) -> Tensor:
        return self._reduced(comparison.anchors, self.training)

    def reference(self, embeddings: Tensor, labels: Tensor, **against: Unpack[Against]) -> Tensor:
        return self._reduced(compare(embeddings, labels, **against).anchors, False)
