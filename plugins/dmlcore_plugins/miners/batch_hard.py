"""Batch-hard mining."""

from __future__ import annotations

import torch

import dmlcore
from dmlcore.losses import Measure, WindowMiner, Windows, slack


class BatchHard(WindowMiner):
    """Each anchor's farthest positive and nearest negative: `s_p = min_k s_k` over its positives, `s_n = max_k s_k` over its
    negatives. An anchor without either keeps no pair.

    Deviation: all of several that are equally far count, not the first of them.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, eq. 5.
    """

    name = "batch_hard"
    title = "Batch-hard mining"
    paper = "Hermans et al., 2017"
    aliases = ("BatchHardMiner",)

    def windows(self, extremes: Measure) -> Windows:
        e = extremes(None)
        near = slack(e.lowest_positive)
        complete = torch.isfinite(e.lowest_positive) & torch.isfinite(e.highest_negative)
        lowest = torch.where(complete, e.lowest_positive, torch.inf)
        highest = torch.where(complete, e.highest_negative, torch.inf)
        return torch.stack([lowest - near, e.lowest_positive + near, highest - near, e.highest_negative + near])


@dmlcore.hookimpl
def dmlcore_miners() -> list[type]:
    return [BatchHard]
