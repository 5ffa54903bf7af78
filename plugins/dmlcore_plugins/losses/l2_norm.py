"""Squared norms of the embeddings as a regulariser."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import LossOptions, NormLoss


class L2Norm(NormLoss):
    """`weight * mean(|x|^2)` over the raw embeddings. Labels do not matter.

    Deviation: pytorch-metric-learning's `LpRegularizer` is the mean of `|x|`, not of its square.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, section 3.2.2; the
    comparator of Zhang, Li, Zhang, "Deep Metric Learning with Spherical Embedding", NeurIPS 2020.
    """

    name = "l2_norm"
    title = "Squared norms of the embeddings"
    paper = "Sohn, NIPS 2016"
    aliases = ("l2_regularizer", "l2_regularisation")

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `l2_norm`."""

        weight: float = 1e-4
        """Factor, >= 0, beside that of an ensemble. 1e-4 is what the comparison of 2020 used."""

        def __post_init__(self) -> None:
            check_range("weight", self.weight, least=0)

    def values(self, embeddings: Tensor, update: bool) -> Tensor:
        return self.options.weight * embeddings.square().sum(1)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [L2Norm]
