"""Angular loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import PairLoss, PairOptions, Rows, Sides, in_pieces, masked_logsumexp, pair_masks, unit


class Angular(PairLoss):
    """`log(1 + sum_n exp(4 t (x_a + x_p) . x_n - 2 (1 + t) x_a . x_p))`, `t = tan(alpha)^2`, over the negatives of the anchor;
    averaged over all pairs of anchor and positive.

    Not fused: a negative's exponent depends on two rows of similarities, the anchor's and the positive's. The pairs are taken
    in pieces and computed again by the backward pass: memory stays bounded, work grows with pairs x negatives.

    Deviation: pytorch-metric-learning does not normalise the negatives; here, as in the paper, all vectors have unit norm.

    Source: Wang, Zhou, Wen, Liu, Lin, "Deep Metric Learning with Angular Loss", ICCV 2017, eq. 8.
    """

    name = "angular"
    streams = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `angular`."""

        alpha: float = 40.0
        """Upper bound of the angle at the negative, in degrees, between 0 and 90."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, above=0, below=90)

    def _rows(self, s: Tensor, positive: Tensor, negative: Tensor, rows_of: Callable[[Tensor], Tensor]) -> Rows:
        """`rows_of` gives the similarities of some references, `[Q]`, to all of them, `[Q, N]`."""
        t = math.tan(math.radians(self.options.alpha)) ** 2

        def of_pairs(anchor: Tensor, other: Tensor) -> Tensor:  # pairs of anchor and positive, [Q] each
            exponents = 4 * t * (s[anchor] + rows_of(other)) - 2 * (1 + t) * s[anchor, other][:, None]  # [Q, N]
            return masked_logsumexp(exponents, negative[anchor], one=True)[None]

        anchor, other = positive.nonzero(as_tuple=True)  # [Q]
        values = s.new_zeros(1, len(s)).index_add(1, anchor, in_pieces(of_pairs, s.shape[1], anchor, other))
        return Rows(values, positive.sum(1).to(s)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        """As every loss's, where the references are the anchors."""
        return self._rows(similarities, positive, negative, lambda other: similarities[other])

    def dense_rows(self, sides: Sides) -> Rows:
        if sides.references is None:
            return super().dense_rows(sides)
        vectors = unit(sides.references)
        return self._rows(self.similarities(sides), *pair_masks(sides), lambda other: vectors[other] @ vectors.T)

    def functor_call(self) -> str:
        return "angular compares a negative with the anchor's row and the positive's; the fused pass sees one row at a time"


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Angular]
