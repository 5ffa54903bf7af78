"""Pair-margin mining."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Measure, MinerOptions, WindowMiner, Windows


class PairMargin(WindowMiner):
    """Positives farther than `pos_margin` and negatives nearer than `neg_margin`, in Euclidean distance of unit vectors: with
    `d^2 = 2 - 2 s` that is `s_p < 1 - pos_margin^2 / 2` and `s_n > 1 - neg_margin^2 / 2`.

    Deviation: a similarity exactly at a bound counts, as rounding decides there.

    Source: the hinges of Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, eq. 4,
    taken as a choice of pairs.
    """

    name = "pair_margin"
    title = "Pair-margin mining"
    paper = "after Hadsell et al., CVPR 2006"
    aliases = ("PairMarginMiner",)

    @dataclass(frozen=True, kw_only=True)
    class Options(MinerOptions):
        """Options of `pair_margin`."""

        pos_margin: float = 0.2
        """Distance from which a positive pair counts, in [0, 2]."""
        neg_margin: float = 0.8
        """Distance up to which a negative pair counts, in [0, 2]."""

        def __post_init__(self) -> None:
            check_range("pos_margin", self.pos_margin, least=0, most=2)
            check_range("neg_margin", self.neg_margin, least=0, most=2)

    def windows(self, extremes: Measure) -> Windows:
        wide = torch.full_like(extremes(None).lowest_positive, torch.inf)
        positive = torch.full_like(wide, 1 - self.options.pos_margin**2 / 2)
        negative = torch.full_like(wide, 1 - self.options.neg_margin**2 / 2)
        return torch.stack([-wide, positive, negative, wide])


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [PairMargin]
