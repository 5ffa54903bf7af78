"""Histogram loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows


class Histogram(PairLoss):
    """Probability that a negative pair is more similar than a positive one: `sum_r h_neg[r] * sum_{q <= r} h_pos[q]`, with
    soft histograms of the cosines of all positive and of all negative pairs, each pair shared between the two nodes around it.

    A loss of the whole batch: each anchor's row is an equal share of it. 0 without positive or without negative pairs.

    Fused: the histograms are sums of whole numbers (a pair's share in units of 2^-20 in float32, 2^-40 in float64), so they do
    not depend on the order of pairs or on the number of threads. A pair's slope is constant between two nodes, and jumps there.

    Deviation: pytorch-metric-learning leaves out pairs of two samples that both lack positives, and fails on cosines that
    round to above 1 (duplicates); here all pairs count, and cosines are clamped to [-1, 1].

    Source: Ustinova, Lempitsky, "Learning Deep Embeddings with Histogram Loss", NeurIPS 2016, eq. 1-5.
    """

    name = "histogram"
    title = "Histogram loss"
    paper = "Ustinova and Lempitsky, NIPS 2016"
    aliases = ("HistogramLoss", "histogram_loss")
    streams = False  # a row is a share of the whole batch
    completes = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `histogram`."""

        n_bins: int = 100
        """Intervals between the nodes over [-1, 1], 2 to 10000."""

        def __post_init__(self) -> None:
            check_range("n_bins", self.n_bins, least=2, most=10000)
            if self.reduction not in ("default", "sum"):
                raise ConfigError(f"reduction '{self.reduction}' is not defined: histogram is one value per batch")

    def _histogram(self, similarities: Tensor) -> Tensor:
        """`[P]` cosines to `[n_bins + 1]` soft counts."""
        bins = self.options.n_bins
        position = ((similarities + 1) * (bins / 2)).clamp(0, bins)
        below = position.detach().nan_to_num(0).floor().long()  # a NaN has no cell, but spoils the one it is put into
        share = position - below
        cells = similarities.new_zeros(bins + 1)
        return cells.index_add(0, below, 1 - share).index_add(0, (below + 1).clamp_max(bins), share)

    def _rows(self, positive: Tensor, negative: Tensor, anchors: int) -> Rows:
        """An equal share of the loss for every anchor, from the soft counts of positive and negative pairs."""
        pairs = positive.sum().clamp_min(1) * negative.sum().clamp_min(1)  # constant: every pair adds 1
        loss = (negative * positive.cumsum(0)).sum() / pairs.detach()
        share = (loss / max(anchors, 1)).expand(1, anchors)
        return Rows(share, torch.full_like(share, 1 / max(anchors, 1)))

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        return self._rows(self._histogram(similarities[positive]), self._histogram(similarities[negative]), len(similarities))

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        # The kernels count in whole numbers, which hold no NaN.
        positive, negative = rows.values + comparison.zeros().sum().to(rows.values.dtype)
        return self._rows(positive, negative, len(comparison.anchors))

    def functor_call(self) -> FunctorCall:
        cells = self.options.n_bins + 1
        return FunctorCall("histogram", (float(cells),), cells=2 * cells)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Histogram]
