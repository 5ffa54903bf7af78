"""Semi-hard mining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Compared, Miner, MinerOptions, distances


class Semihard(Miner):
    """The pairs of all triplets with `d_ap < d_an <= d_ap + margin`, `d` the Euclidean distance of unit vectors: positives that
    have such a negative, and negatives that have such a positive.

    Not one interval per anchor, so not fused; `triplet` with `mining = semihard` is. Work is O(N log N) per anchor: for each
    pair a binary search among the sorted distances of the other side.

    Source: Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, eq. 4, with every such negative instead of one.
    """

    name = "semihard"
    title = "Semi-hard mining"
    paper = "Schroff et al., CVPR 2015"
    aliases = ("SemihardMiner", "semi_hard")

    @dataclass(frozen=True, kw_only=True)
    class Options(MinerOptions):
        """Options of `semihard`."""

        margin: float = 0.2
        """How much farther than the positive a negative may be, in [0, 2]."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=2)

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        if similarities.shape[1] == 0:
            return positive, negative
        d, margin = distances(similarities), self.options.margin
        nothing = d.new_full((len(d), 1), torch.inf)

        def ordered(mask: Tensor) -> Tensor:
            return torch.cat([torch.where(mask, d, torch.inf).sort(1).values, nothing], dim=1)  # [A, N + 1]

        positives, negatives = ordered(positive), ordered(negative)
        next_negative = negatives.gather(1, torch.searchsorted(negatives, d, right=True))  # the nearest beyond each pair
        has_negative = next_negative <= d + margin
        # The nearest positive within the margin before each pair: if that is not nearer than the pair, none is.
        first_positive = positives.gather(1, torch.searchsorted(positives + margin, d).clamp_max(d.shape[1]))
        has_positive = first_positive < d
        return positive & has_negative, negative & has_positive


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [Semihard]
