"""Contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import dmlcore
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Distance, PairLoss, PairOptions, Rows, check_margin, distances


class Contrastive(PairLoss):
    """`relu(d_p - pos_margin)` over positive pairs plus `relu(neg_margin - d_n)` over negative pairs; each of the two is
    averaged over its pairs with a non-zero value. `d` is the Euclidean distance of unit vectors, or what `distance` says.

    Deviation: the hinges are not squared, as in today's libraries.

    Source: Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, eq. 4.
    """

    name = "contrastive"
    title = "Contrastive loss"
    paper = "Hadsell et al., CVPR 2006"
    aliases = ("ContrastiveLoss", "contrastive_loss")
    searched: ClassVar = {"neg_margin": (1.0, 0.5, 0.75, 1.25)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `contrastive`."""

        pos_margin: float = 0.0
        """Distance below which a positive pair costs nothing, in the range of the distance."""
        neg_margin: float = 1.0
        """Distance above which a negative pair costs nothing, in the range of the distance."""
        distance: Distance = "euclidean"
        """`euclidean` (0 to 2) and `squared_euclidean` (0 to 4) of unit vectors, `cosine` (1 - cosine, 0 to 2), or `dot` (the
        negative product of vectors that are not normalised, any number)."""

        def __post_init__(self) -> None:
            check_margin("pos_margin", self.pos_margin, self.distance)
            check_margin("neg_margin", self.neg_margin, self.distance)

    def __init__(self, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(options, **options_by_name)
        if self.options.distance == "dot":
            self.normalise = (False, False)

    @classmethod
    def reads_norms(cls, options: Any) -> bool:
        return options.distance == "dot"

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d = distances(similarities, self.options.distance)
        pull = torch.relu(d - self.options.pos_margin) * positive
        push = torch.relu(self.options.neg_margin - d) * negative
        values = torch.stack([pull.sum(1), push.sum(1)])  # [2, A]
        return Rows(values, torch.stack([(pull > 0).sum(1), (push > 0).sum(1)]).to(values))

    def functor_call(self) -> FunctorCall:
        kind = self.options.distance
        functor = "contrastive" if kind == "euclidean" else f"contrastive_{kind}"
        return FunctorCall(functor, (self.options.pos_margin, self.options.neg_margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Contrastive]
