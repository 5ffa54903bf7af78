"""Easy-positive mining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

import dmlcore
from dmlcore.losses import Measure, MinerOptions, WindowMiner, Windows, slack


class EasyPositive(WindowMiner):
    """Each anchor's nearest positive, `s_p = max_k s_k`, with its nearest negative that is farther than that,
    `s_n = max {s_k : s_k < s_p}` (`semihard`), or with its nearest negative (`hard`). An anchor without either keeps no pair.

    Deviation: all of several that are equally far count, not the first of them.

    Source: Xuan, Stylianou, Pless, "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020, sections 3.2 and 3.3.
    """

    name = "easy_positive"
    title = "Easy-positive mining"
    paper = "Xuan et al., WACV 2020"
    aliases = ("EasyPositiveMiner", "easy_positive_mining")

    @dataclass(frozen=True, kw_only=True)
    class Options(MinerOptions):
        """Options of `easy_positive`."""

        negatives: Literal["semihard", "hard"] = "semihard"
        """Which negative: the nearest one beyond the positive, or the nearest of all."""

    def windows(self, extremes: Measure) -> Windows:
        e = extremes(None)
        near = slack(e.highest_positive)
        if self.options.negatives == "semihard":
            wide = torch.full_like(e.highest_positive, torch.inf)
            below = extremes(torch.stack([-wide, wide, -wide, e.highest_positive - near]))
            highest = below.highest_negative
        else:
            highest = e.highest_negative
        complete = torch.isfinite(e.highest_positive) & torch.isfinite(highest)
        # beyond the positive and equally far as the one found: the upper end must not reach the positive again
        top = highest + near if self.options.negatives == "hard" else torch.minimum(highest + near, e.highest_positive - near)
        infinite = torch.full_like(highest, torch.inf)
        return torch.stack(
            [
                torch.where(complete, e.highest_positive - near, infinite),
                e.highest_positive + near,
                torch.where(complete, highest - near, infinite),
                top,
            ]
        )


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [EasyPositive]
