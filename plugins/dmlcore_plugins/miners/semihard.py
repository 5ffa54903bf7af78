"""Semi-hard mining."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Compared, Miner, MinerOptions, distances

MOST_COMPARED = 32
"""Positives of an anchor up to which comparing each with all pairs is faster than sorting, measured for 2048 samples."""


class Semihard(Miner):
    """The pairs of all triplets with `d_ap < d_an <= d_ap + margin`, `d` the Euclidean distance of unit vectors: positives that
    have such a negative, and negatives that have such a positive.

    Fused on the CPU: a pass first finds the positives that count, then the negatives lie in few intervals of distance. In
    plain PyTorch, as on CUDA, work is O(P N) per anchor with few positives P. With many it is O(N log N): for each pair a
    binary search among the sorted distances of the other side.

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

    @property
    def semihard_margin(self) -> float | None:
        """The margin, but for a class that chooses otherwise."""
        return self.options.margin if type(self).masks is Semihard.masks else None

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        if 0 in similarities.shape:
            return positive, negative
        d, margin = distances(similarities), self.options.margin
        counts = positive.sum(1)
        most = int(counts.max()) if positive.device.type == "cpu" and not torch.compiler.is_compiling() else MOST_COMPARED + 1
        if most <= MOST_COMPARED:
            return _by_comparing(d, margin, positive, negative, counts, most)
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


def _by_comparing(
    d: Tensor, margin: float, positive: Tensor, negative: Tensor, counts: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The same, by comparing each of the few positives of an anchor with all of its pairs."""
    rows, columns = positive.nonzero().unbind(1)  # row by row
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]  # which positive of its anchor
    of_positives = d.new_full((len(d), most), torch.inf)  # [A, P]
    of_positives[rows, place] = d[rows, columns]
    near = torch.zeros_like(negative)
    has_negative = torch.zeros_like(of_positives, dtype=torch.bool)
    for k in range(most):
        nearest = of_positives[:, k : k + 1]  # [A, 1]
        inside = (d > nearest).logical_and_(d <= nearest + margin).logical_and_(negative)
        has_negative[:, k] = inside.any(1)
        near |= inside
    mined = torch.zeros_like(positive)
    mined[rows, columns] = has_negative[rows, place]
    return mined, near


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [Semihard]
