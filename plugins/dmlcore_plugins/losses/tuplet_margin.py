"""Tuplet margin loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows
from dmlcore_plugins.losses.nt_xent import positives_against_negatives


def widened(similarities: Tensor, degrees: float) -> Tensor:
    """`cos(acos(s) - margin)`, the cosine of an angle made smaller.

    At the ends of the arc, where `1 - s^2 <= 4 eps` of the dtype, the derivative of acos is infinite: there the gradient is 0
    and the angle counts as exactly 0 or pi.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    squares = (1 - similarities) * (1 + similarities)
    inside = squares > 4 * torch.finfo(similarities.dtype).eps
    roots = torch.sqrt(torch.where(inside, squares, torch.ones_like(squares)))
    return torch.where(inside, cosine * similarities + sine * roots, cosine * similarities.detach())


class TupletMargin(PairLoss):
    """`log(1 + sum_n exp(scale (s_n - cos(acos(s_p) - margin))))`, mean over all pairs of anchor and positive.

    A positive of an anchor without negatives has the value 0.

    Deviation: a pair of coincident or opposite points has a gradient of 0 where pytorch-metric-learning's is not finite.

    Source: Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019: the loss of its title.
    """

    name = "tuplet_margin"
    title = "Tuplet margin loss"
    paper = "Yu and Tao, ICCV 2019"
    aliases = ("TupletMarginLoss", "tuplet_margin_loss")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `tuplet_margin`."""

        margin: float = 5.73
        """By how much the angle of a positive is made smaller, in degrees, in [0, 90]."""
        scale: float = 64.0
        """Factor of the cosines, > 0."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=90)
            check_range("scale", self.scale, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        o = self.options
        targets = widened(similarities, o.margin) if o.margin else similarities
        return positives_against_negatives(o.scale * similarities, o.scale * targets, positive, negative)

    def functor_call(self) -> FunctorCall:
        margin = math.radians(self.options.margin)
        return FunctorCall("tuplet_margin", (self.options.scale, math.cos(margin), math.sin(margin)))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [TupletMargin]
