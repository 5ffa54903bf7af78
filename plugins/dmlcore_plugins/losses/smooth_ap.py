"""Smooth-AP loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, in_pieces, listed_positives


class SmoothAP(PairLoss):
    """`1 - mean_p(rank_among_positives(p) / rank(p))` of each anchor, its average precision with soft ranks
    `rank(p) = 1 + sum_{q != p} sigmoid((s_q - s_p) / temperature)` over the other positives, or over all other references;
    averaged over the anchors with a positive.

    In a batch compared with itself (and with references that hold the anchor, `own`) the anchor takes part as a positive of
    similarity 1, as in the authors' code. The cost is one sigmoid for each positive and negative of an anchor, and two for each
    two of its positives; nothing is kept of them.

    Deviation: an anchor without another positive does not count. pytorch-metric-learning agrees where a batch has as many
    classes as samples per class; elsewhere its rank among positives mixes classes up.

    Source: Brown, Xie, Kalogeiton, Zisserman, "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020,
    eq. 5-8.
    """

    name = "smooth_ap"
    title = "Smooth-AP loss"
    paper = "Brown et al., ECCV 2020"
    aliases = ("SmoothAPLoss", "smoothap")
    streams = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `smooth_ap`."""

        temperature: float = 0.01
        """Width of the step that a sigmoid softens, in units of cosine similarity, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def own_shares(self, comparison: Comparison) -> Tensor:
        """`[1, A]`: 1 where the anchor is among the references."""
        own = torch.full_like(comparison.anchors[:, 0], float(comparison.references is None))
        if comparison.own is not None:
            own = (comparison.own >= 0).to(own)
        return own[None]

    def _precision(self, s: Tensor, index: Tensor, real: Tensor, positive: Tensor, negative: Tensor, own: Tensor) -> Tensor:
        """`[1, a]` average precisions: similarities and masks `[a, N]`, listed positives `[a, P]`, the anchor's own `[a]`."""
        columns = s.shape[1]
        thresholds = torch.cat([s.gather(1, index), torch.ones_like(s[:, :1])], dim=1)  # [a, P + 1]
        counted = torch.cat([real, own[:, None] > 0], dim=1)
        place = torch.cat([index, torch.full_like(index[:, :1], columns)], dim=1)
        extended = torch.cat([s, torch.ones_like(s[:, :1])], dim=1)  # [a, N + 1]
        mask = torch.cat([positive, own[:, None] > 0], dim=1)
        above = torch.sigmoid((extended[:, None, :] - thresholds[:, :, None]) / self.options.temperature)  # [a, P + 1, N + 1]
        itself = torch.arange(columns + 1, device=s.device) == place[:, :, None]
        above = torch.where(itself, torch.zeros_like(above), above)
        rank = 1 + (above * mask[:, None, :]).sum(2)  # [a, P + 1]
        worse = (above[:, :, :-1] * negative[:, None, :]).sum(2)
        return ((rank / (rank + worse)) * counted).sum(1)[None] / counted.sum(1).clamp_min(1)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor, own: Tensor | None = None) -> Rows:
        """As every loss's; `own` is 1 for the anchors that take part themselves, `[A]`, None for none of them."""
        if own is None:
            own = similarities.new_zeros(len(similarities))
        some = positive.any(1).to(similarities)[None]  # [1, A]
        if similarities.shape[1] == 0:
            return Rows(similarities.sum(1)[None], some)
        index, real = listed_positives(positive)
        width = (real.shape[1] + 1) * (similarities.shape[1] + 1)
        precision = in_pieces(self._precision, width, similarities, index, real, positive, negative, own)
        return Rows(some * (1 - precision), some)

    def dense_rows(self, comparison: Comparison) -> Rows:
        return self.row_values(self.similarities(comparison), *comparison.masks(), self.own_shares(comparison)[0])

    def functor_call(self) -> FunctorCall:
        return FunctorCall("smooth_ap", (self.options.temperature,), given=self.own_shares)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SmoothAP]
