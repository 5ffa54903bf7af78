"""Multi-similarity mining."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Measure, MinerOptions, WindowMiner, Windows


class MultiSimilarity(WindowMiner):
    """Positives with `s_p - epsilon < max_n s_n` and negatives with `s_n + epsilon > min_p s_p`, over an anchor's own pairs. An
    anchor without either keeps no pair.

    Deviation: a similarity exactly at a bound counts, as rounding decides there.

    Source: Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting", CVPR 2019, eq. 9 and 10.
    """

    name = "multi_similarity"
    title = "Multi-Similarity mining"
    paper = "Wang et al., CVPR 2019"
    aliases = ("MultiSimilarityMiner",)

    @dataclass(frozen=True, kw_only=True)
    class Options(MinerOptions):
        """Options of `multi_similarity`."""

        epsilon: float = 0.1
        """How much easier than the hardest of the other side a pair may be, in [-2, 2]."""

        def __post_init__(self) -> None:
            check_range("epsilon", self.epsilon, least=-2, most=2)

    def windows(self, extremes: Measure) -> Windows:
        e = extremes(None)
        wide = torch.full_like(e.lowest_positive, torch.inf)
        return torch.stack([-wide, e.highest_negative + self.options.epsilon, e.lowest_positive - self.options.epsilon, wide])


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [MultiSimilarity]
