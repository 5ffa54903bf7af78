"""FastAP loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, in_pieces

FUSED_BINS = 10


class FastAP(PairLoss):
    """`1 - sum_c h_pos[c] * H_pos[c] / H[c] / P` of each anchor: its average precision from soft histograms of the squared
    Euclidean distances `d^2` of unit vectors. A pair at `x = d^2 / (4 / num_bins)` is shared between the two nearest of the
    `num_bins + 1` cells 0, 1, ..; `H` is the cumulative histogram of all pairs, `P` the number of positives. Averaged over
    the anchors with positives.

    Fused for 10 bins. The slope of a pair is constant between two cells and jumps there.

    Source: Cakir, He, Xia, Kulis, Sclaroff, "Deep Metric Learning to Rank", CVPR 2019, eq. 8-10.
    """

    name = "fast_ap"
    title = "FastAP loss"
    paper = "Cakir et al., CVPR 2019"
    aliases = ("FastAPLoss", "fastap")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `fast_ap`."""

        num_bins: int = FUSED_BINS
        """Intervals of squared distance over [0, 4], 2 to 1000."""

        def __post_init__(self) -> None:
            check_range("num_bins", self.num_bins, least=2, most=1000)

    def _histograms(self, x: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """`[2 (num_bins + 1), a]`: soft counts of positives, then of negatives, from positions `[a, N]`."""
        cells = torch.arange(self.options.num_bins + 1, device=x.device, dtype=x.dtype)
        share = torch.relu(1 - (x[:, None, :] - cells[:, None]).abs())  # [a, C, N]
        return torch.cat([(share * positive[:, None, :]).sum(2), (share * negative[:, None, :]).sum(2)], dim=1).T

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        x = ((1 - similarities) * (self.options.num_bins / 2)).clamp_min(0)
        width = (self.options.num_bins + 1) * x.shape[1]
        of_positives, of_negatives = in_pieces(self._histograms, width, x, positive, negative).chunk(2)  # [C, A]
        below = of_positives.cumsum(0)
        nearer = below + of_negatives.cumsum(0)
        used = nearer > 0
        precision = (of_positives * below / torch.where(used, nearer, torch.ones_like(nearer))).sum(0)
        count = positive.sum(1)
        some = (count > 0).to(x)[None]  # [1, A]
        return Rows(some * (1 - precision / count.clamp_min(1)), some)

    def functor_call(self) -> FunctorCall | str:
        if self.options.num_bins != FUSED_BINS:
            return f"fast_ap is fused for {FUSED_BINS} bins only"
        return FunctorCall("fast_ap", (float(FUSED_BINS),))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [FastAP]
