"""Contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, PairLoss, Rows, distances


class Contrastive(PairLoss):
    """`relu(d_p - pos_margin)` over positive pairs plus `relu(neg_margin - d_n)` over negative pairs, `d` the Euclidean
    distance of unit vectors; each of the two is averaged over its pairs with a non-zero value.

    Deviation: the hinges are not squared, as in today's libraries.

    Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, eq. 4.
    """

    name = "contrastive"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `contrastive`."""

        pos_margin: float = 0.0
        """Distance below which a positive pair costs nothing, in [0, 2]."""
        neg_margin: float = 1.0
        """Distance above which a negative pair costs nothing, in [0, 2]."""

        def __post_init__(self) -> None:
            check_range("pos_margin", self.pos_margin, least=0, most=2)
            check_range("neg_margin", self.neg_margin, least=0, most=2)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d = distances(similarities)
        pull = torch.relu(d - self.options.pos_margin) * positive
        push = torch.relu(self.options.neg_margin - d) * negative
        values = torch.stack([pull.sum(1), push.sum(1)])  # [2, A]
        return Rows(values, torch.stack([(pull > 0).sum(1), (push > 0).sum(1)]).to(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("contrastive", (self.options.pos_margin, self.options.neg_margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Contrastive]
