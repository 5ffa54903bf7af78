"""Angular mining."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.losses import Compared, Miner, MinerOptions


class Angular(Miner):
    """The pairs of all triplets whose angle at the negative is too wide: `atan(|a - p| / (2 |n - c|)) > angle` with the centre
    `c = (a + p) / 2`, on unit vectors.

    Not fused: the negative is compared with the middle of the other two. Work: a product of each positive with all references.

    Source: Wang, Zhou, Wen, Liu, Lin, "Deep Metric Learning with Angular Loss", ICCV 2017, section 3.2.
    """

    name = "angular"
    title = "Angular mining"
    paper = "Wang et al., ICCV 2017"
    aliases = ("AngularMiner",)

    @dataclass(frozen=True, kw_only=True)
    class Options(MinerOptions):
        """Options of `angular`."""

        angle: float = 20.0
        """Degrees from which a triplet counts, in (0, 90)."""

        def __post_init__(self) -> None:
            check_range("angle", self.angle, above=0, below=90)

    def masks(self, similarities: Tensor, positive: Tensor, negative: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        tangent = 2 * math.tan(math.radians(self.options.angle))
        chosen_positive, hits = torch.zeros_like(positive), torch.zeros_like(negative, dtype=torch.int32)
        row, column = positive.nonzero(as_tuple=True)
        for rows, columns in zip(row.split(256), column.split(256), strict=True):  # pairs of anchor and positive
            together = similarities[rows, columns][:, None]  # [b, 1]
            of_positives = compared.references[columns] @ compared.references.T  # [b, N]
            # |n - c|^2 = |c|^2 - 2 n.c + |n|^2 with |c|^2 = (1 + s_ap) / 2 and 2 n.c = s_an + s_pn
            to_centre = ((1 + together) / 2 - similarities[rows] - of_positives + 1).clamp_min(0)
            wide = negative[rows] & ((2 - 2 * together).clamp_min(0) > tangent**2 * to_centre)
            chosen_positive[rows, columns] = wide.any(1)
            hits.index_add_(0, rows, wide.int())
        return chosen_positive, hits > 0


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [Angular]
