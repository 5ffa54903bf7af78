"""Angular loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, in_pieces, masked_logsumexp, unit

MOST_PAIRS = 8
"""Pairs of one class for each vector that is compared, up to which they are written as vectors of their own, which bounds the
memory by some ten times this many embeddings; beyond, pairs are taken in pieces."""


class PairRanges(NamedTuple):
    """Pairs of one class without listing them: `ordered[i]` with each of `others[first[i]:first[i] + number[i]]`.

    Attributes:
        ordered: `[A]` int64, anchors in the order of their labels.
        other_ordered: `[N]` int64, references in the order of theirs.
        first, number: `[A]` int64.
    """

    ordered: Tensor
    other_ordered: Tensor
    first: Tensor
    number: Tensor


def pair_ranges(comparison: Comparison) -> PairRanges:
    """All pairs of an anchor and a reference with its label; of a batch with itself each unordered pair once."""
    labels, ordered = comparison.labels.sort(stable=True)
    if comparison.reference_labels is None:
        first = torch.arange(1, len(labels) + 1, device=labels.device)
        return PairRanges(ordered, ordered, first, torch.searchsorted(labels, labels, right=True) - first)
    other_labels, other_ordered = comparison.reference_labels.sort(stable=True)
    first = torch.searchsorted(other_labels, labels)
    return PairRanges(ordered, other_ordered, first, torch.searchsorted(other_labels, labels, right=True) - first)


def listed_pairs(comparison: Comparison) -> tuple[Tensor, Tensor]:
    """Anchors and references of the pairs of `pair_ranges`, `[Q]` each, ordered by label, without an anchor's own reference."""
    ordered, other_ordered, first, number = pair_ranges(comparison)
    place = torch.repeat_interleave(number)  # [Q]
    rank = torch.arange(len(place), device=place.device) - (number.cumsum(0) - number)[place]
    anchor, other = ordered[place], other_ordered[first[place] + rank]
    if comparison.own is None:
        return anchor, other
    is_pair = comparison.own[anchor] != other
    return anchor[is_pair], other[is_pair]


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
    fuses_relations = False  # under a relation the points of a pair have different negatives
    rearranges = True  # the kernels compare pairs
    completes = True  # which add up to anchors
    needs_vectors = True  # a positive's similarities to all negatives
    kernel_normalise = (False, False)

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
            return masked_logsumexp(exponents, negative[anchor], plus_one=True)[None]

        anchor, other = positive.nonzero(as_tuple=True)  # [Q]
        values = s.new_zeros(1, len(s)).index_add(1, anchor, in_pieces(of_pairs, s.shape[1], anchor, other))
        return Rows(values, positive.sum(1).to(s)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        """As every loss's, where the references are the anchors."""
        return self._rows(similarities, positive, negative, lambda other: similarities.index_select(0, other))

    def dense_rows(self, comparison: Comparison) -> Rows:
        if comparison.references is None:
            return super().dense_rows(comparison)
        vectors = unit(comparison.references)
        return self._rows(
            self.similarities(comparison), *comparison.masks(), lambda other: vectors.index_select(0, other) @ vectors.T
        )

    def functor_call(self) -> FunctorCall:
        t = self.slope
        return FunctorCall("angular", (8 * t + 2 * (1 + t),))

    def rearranged(self, comparison: Comparison) -> tuple[Comparison, tuple[Tensor, Tensor]] | None:
        """Pairs of anchor and positive against the references, and which points these are. None: there are too many pairs."""
        vectors = len(comparison.anchors) + (0 if comparison.references is None else len(comparison.references))
        if int(pair_ranges(comparison).number.sum()) > MOST_PAIRS * vectors:
            return None
        t, (anchor, other) = self.slope, listed_pairs(comparison)
        dtype, labels = comparison.dtype, comparison.labels
        with torch.autocast(labels.device.type, enabled=False):
            references = unit(comparison.other_vectors.to(dtype))
            anchors = references if comparison.references is None else unit(comparison.anchors.to(dtype))
            x, y = anchors.index_select(0, anchor), references.index_select(0, other)  # [Q, D]
            pairs = torch.cat([4 * t * (x + y), 2 * (1 + t) * (x * y).sum(1, keepdim=True)], dim=1)  # [Q, D + 1]
            extended = torch.cat([references, -torch.ones_like(references[:, :1])], dim=1)  # [N, D + 1]
        own = None if comparison.own is None else comparison.own[anchor]
        return Comparison(pairs, labels[anchor], extended, comparison.other_labels, own), (anchor, other)

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        anchor, other = context
        of_pairs = torch.stack(rows)  # [2, 1, Q]: values, counts
        sums = of_pairs.new_zeros(2, 1, len(comparison.labels)).index_add(2, anchor, of_pairs)
        if comparison.references is None:  # each unordered pair came once
            sums = sums.index_add(2, other, of_pairs)
        return Rows(*sums.unbind())


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Angular]
