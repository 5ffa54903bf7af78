"""An example plugin: one loss in plain PyTorch. Install it with `pip install ./plugins/dmlcore_example`, then
`dmlcore train --plugins ms,example/centroid`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Loss, LossOptions, unit


class Centroid(Loss):
    """Cross-entropy over `cos(x, c) / temperature` where `c` runs over the mean directions of the batch's classes.

    A sample is compared with the mean of the other samples of its own class; a sample alone in its class does not count.

    Source: the prototypes of Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, with cosines.
    """

    name = "example/centroid"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `example/centroid`."""

        temperature: float = 0.1
        """Divisor of the cosines, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def forward(
        self, embeddings: Tensor, labels: Tensor, *, references: Tensor | None = None, reference_labels: Tensor | None = None
    ) -> Tensor:
        x = unit(embeddings)  # [B, D]
        classes, dense = torch.unique(labels, return_inverse=True)
        sums = torch.zeros(len(classes), x.shape[1], dtype=x.dtype, device=x.device).index_add(0, dense, x)  # [C, D]
        sizes = torch.bincount(dense, minlength=len(classes))  # [C]
        logits = x @ unit(sums).T / self.options.temperature  # [B, C]
        own = (x * unit(sums[dense] - x)).sum(1, keepdim=True) / self.options.temperature  # [B, 1]
        logits = logits.scatter(1, dense[:, None], own)
        values = torch.logsumexp(logits, 1) - own[:, 0]  # [B]
        counts = sizes[dense] > 1
        return (values * counts).sum() / counts.sum().clamp_min(1)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Centroid]
