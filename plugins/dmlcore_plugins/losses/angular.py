"""Angular loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, Sides, in_pieces, masked_logsumexp, pair_masks, unit
from dmlcore.losses.base import run_together

MOST_PAIRS = 8
"""Pairs of one class for each vector that is compared, up to which they are written as vectors of their own, which bounds the
memory by some ten times this many embeddings; beyond, pairs are taken in pieces."""


class PairRanges(NamedTuple):
    """Pairs of one class without listing them: `ordered[i]` with each of `others[first[i]:first[i] + number[i]]`.

    Attributes:
        ordered: `[A]` int64, anchors in the order of their labels.
        others: `[N]` int64, references in the order of theirs.
        first, number: `[A]` int64.
    """

    ordered: Tensor
    others: Tensor
    first: Tensor
    number: Tensor


def pair_ranges(sides: Sides) -> PairRanges:
    """All pairs of an anchor and a reference with its label; of a batch with itself each unordered pair once."""
    labels, ordered = sides.anchor_labels.sort(stable=True)
    if sides.reference_labels is None:
        first = torch.arange(1, len(labels) + 1, device=labels.device)
        return PairRanges(ordered, ordered, first, torch.searchsorted(labels, labels, right=True) - first)
    other_labels, others = sides.reference_labels.sort(stable=True)
    first = torch.searchsorted(other_labels, labels)
    return PairRanges(ordered, others, first, torch.searchsorted(other_labels, labels, right=True) - first)


def listed_pairs(sides: Sides) -> tuple[Tensor, Tensor]:
    """Anchors and references of the pairs of `pair_ranges`, `[Q]` each, ordered by label, without an anchor's own reference."""
    ordered, others, first, number = pair_ranges(sides)
    place = torch.repeat_interleave(number)  # [Q]
    rank = torch.arange(len(place), device=place.device) - (number.cumsum(0) - number)[place]
    anchor, other = ordered[place], others[first[place] + rank]
    if sides.own is None:
        return anchor, other
    kept = sides.own[anchor] != other
    return anchor[kept], other[kept]


class Angular(PairLoss):
    """`log(1 + sum_n exp(4 t (x_a + x_p) . x_n - 2 (1 + t) x_a . x_p))`, `t = tan(alpha)^2`, over the negatives of the anchor;
    averaged over all pairs of anchor and positive.

    Fused: the exponent is the product of `[4 t (x_a + x_p), 2 (1 + t) x_a . x_p]`, one vector for each pair, with `[x_n, -1]`.
    It is symmetric in `a` and `p`, so a batch with itself takes each of its Q pairs once and counts the value for both anchors:
    6 Q N D operations and O(Q D) memory. Plain: relations, under which the two points of a pair have different negatives;
    miners; classes so large that there are more than 8 pairs for each vector. There pairs are taken in pieces and computed
    again by the backward pass. Listing the pairs breaks the graph of `torch.compile`.

    Deviation: pytorch-metric-learning does not normalise the negatives; here, as in the paper, all vectors have unit norm.

    Source: Wang, Zhou, Wen, Liu, Lin, "Deep Metric Learning with Angular Loss", ICCV 2017, eq. 8.
    """

    name = "angular"
    title = "Angular loss"
    paper = "Wang et al., ICCV 2017"
    aliases = ("AngularLoss", "angular_loss")
    streams = True
    fuses_miners = False  # a miner leaves each point of a pair negatives of its own

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `angular`."""

        alpha: float = 40.0
        """Upper bound of the angle at the negative, in degrees, between 0 and 90."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, above=0, below=90)

    @property
    def slope(self) -> float:
        """`t`, the squared tangent of the angle."""
        return math.tan(math.radians(self.options.alpha)) ** 2

    def _rows(self, s: Tensor, positive: Tensor, negative: Tensor, rows_of: Callable[[Tensor], Tensor]) -> Rows:
        """`rows_of` gives the similarities of some references, `[Q]`, to all of them, `[Q, N]`."""
        t = self.slope

        # index_select sums its gradients in a fixed order on every number of threads
        def of_pairs(anchor: Tensor, other: Tensor) -> Tensor:  # pairs of anchor and positive, [Q] each
            exponents = 4 * t * (s.index_select(0, anchor) + rows_of(other)) - 2 * (1 + t) * s[anchor, other][:, None]  # [Q, N]
            return masked_logsumexp(exponents, negative[anchor], one=True)[None]

        anchor, other = positive.nonzero(as_tuple=True)  # [Q]
        values = s.new_zeros(1, len(s)).index_add(1, anchor, in_pieces(of_pairs, s.shape[1], anchor, other))
        return Rows(values, positive.sum(1).to(s)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        """As every loss's, where the references are the anchors."""
        return self._rows(similarities, positive, negative, lambda other: similarities.index_select(0, other))

    def dense_rows(self, sides: Sides) -> Rows:
        if sides.references is None:
            return super().dense_rows(sides)
        vectors = unit(sides.references)
        return self._rows(
            self.similarities(sides), *pair_masks(sides), lambda other: vectors.index_select(0, other) @ vectors.T
        )

    def functor_call(self) -> FunctorCall:
        t = self.slope
        return FunctorCall("angular", (8 * t + 2 * (1 + t),))

    def call_for(self, embeddings: Tensor, sides: Sides) -> FunctorCall | None:
        call = super().call_for(embeddings, sides)
        if call is None or sides.relation is not None:
            return None
        vectors = len(sides.anchors) + (0 if sides.references is None else len(sides.references))
        return call if int(pair_ranges(sides).number.sum()) <= MOST_PAIRS * vectors else None

    def fused_rows(self, sides: Sides, call: FunctorCall) -> Rows:
        t, (anchor, other) = self.slope, listed_pairs(sides)
        labels = sides.anchor_labels
        others = sides.anchors if sides.references is None else sides.references
        dtype = torch.float64 if torch.float64 in (sides.anchors.dtype, others.dtype) else torch.float32
        with torch.autocast(others.device.type, enabled=False):
            references = unit(others.to(dtype))
            anchors = references if sides.references is None else unit(sides.anchors.to(dtype))
            x, y = anchors.index_select(0, anchor), references.index_select(0, other)  # [Q, D]
            pairs = torch.cat([4 * t * (x + y), 2 * (1 + t) * (x * y).sum(1, keepdim=True)], dim=1)  # [Q, D + 1]
            extended = torch.cat([references, -torch.ones_like(references[:, :1])], dim=1)  # [N, D + 1]
            compared = Sides(
                pairs,
                labels[anchor],
                extended,
                labels if sides.reference_labels is None else sides.reference_labels,
                None if sides.own is None else sides.own[anchor],
            )
            of_pairs = torch.stack(run_together(compared, (call,), (False, False))[:2])  # [2, 1, Q]: values, counts
            rows = of_pairs.new_zeros(2, 1, len(labels)).index_add(2, anchor, of_pairs)
            if sides.references is None:
                rows = rows.index_add(2, other, of_pairs)
        return Rows(*rows.unbind())


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Angular]
