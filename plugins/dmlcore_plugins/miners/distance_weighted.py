"""Distance-weighted sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Compared, SeededMiner, SeededOptions, distances


class DistanceWeighted(SeededMiner):
    """All positives of an anchor, and for each of them one negative drawn with the weight
    `1 / q(max(d, cutoff))` where `d < nonzero_loss_cutoff`, else 0. `q(d) = d^(D-2) (1 - d^2 / 4)^((D-3)/2)` is the density of
    the Euclidean distances of points spread evenly over the unit sphere in `D` dimensions. Drawn with replacement. An anchor
    whose weights are all 0, or without positives, keeps no pair.

    Source: Wu, Manmatha, Smola, Kraehenbuehl, "Sampling Matters in Deep Embedding Learning", ICCV 2017, section 4.
    """

    name = "distance_weighted"
    title = "Distance-weighted sampling"
    paper = "Wu et al., ICCV 2017"
    aliases = ("DistanceWeightedMiner",)

    @dataclass(frozen=True, kw_only=True)
    class Options(SeededOptions):
        """Options of `distance_weighted`."""

        cutoff: float = 0.5
        """Nearer negatives are weighed as if they were so far, in (0, 2)."""
        nonzero_loss_cutoff: float = 1.4
        """Negatives from this distance on are not drawn, in (0, 2]."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_range("cutoff", self.cutoff, above=0, below=2)
            check_range("nonzero_loss_cutoff", self.nonzero_loss_cutoff, above=0, most=2)

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        if similarities.shape[1] == 0:
            return positive, negative
        width = compared.anchors.shape[1]
        d = distances(similarities).double().clamp_min(self.options.cutoff)  # the largest exponents reach +-D
        # at the far end of the sphere the density is 0 and its logarithm minus infinity; no weight may be infinite
        log_weights = (2.0 - width) * d.log() - (width - 3) / 2 * (1 - d.square() / 4).clamp_min(1e-12).log()
        candidate = negative & (d < self.options.nonzero_loss_cutoff)
        log_weights = torch.where(candidate, log_weights, -torch.inf)
        can_draw = candidate.any(1) & positive.any(1)
        heaviest = torch.where(can_draw, log_weights.amax(1), torch.zeros_like(d[:, 0]))
        sums = (log_weights - heaviest[:, None]).exp().cumsum(1)  # [A, N]
        count = positive.sum(1)
        most = int(count.max()) if len(count) else 0
        drawn = self.uniform(compared, most) * sums[:, -1:]  # [A, P], below the sum of all
        index = torch.searchsorted(sums, drawn, right=True).clamp_max(d.shape[1] - 1)  # the first sum above: weight > 0
        is_draw = (torch.arange(most, device=d.device)[None, :] < count[:, None]) & can_draw[:, None]
        hits = torch.zeros_like(count[:, None].expand_as(negative)).scatter_add(1, index, is_draw.long())
        return positive & can_draw[:, None], candidate & (hits > 0)


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [DistanceWeighted]
