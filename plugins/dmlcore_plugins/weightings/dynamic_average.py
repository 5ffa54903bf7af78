"""Weights from how fast each loss falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting


class DynamicAverage(Weighting):
    """`sum_i w_i l_i` with `w = softmax(log p + r / temperature)`, `r_i` the ratio of loss i's means over the last two windows.

    A loss that falls less than the others gets more weight. `p` are the weights asked for, scaled to sum 1; they hold during
    the first two windows, and a loss with initial weight 0 stays out. Ratios are cut at `largest`, so that a loss that leaps
    leaves the others at least about `exp(-largest / temperature)` of their share; a loss that was 0 has the ratio 1 or, when
    it comes back, the largest. The weights do not depend on the scale of any loss, nor do they undo it. Nothing is learnt.

    `importances` are the weights.

    Source: Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, eq. 7 (dynamic weight average).
    Deviations: windows of steps instead of epochs, weights that sum to 1 instead of L, prior, cut.
    """

    name = "dynamic_average"
    title = "Dynamic weight average"
    paper = "Liu et al., CVPR 2019"
    aliases = ("DWA", "dynamic_weight_average")

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `dynamic_average`."""

        window: int = 100
        """Steps over which losses are averaged before they are compared, >= 1."""
        temperature: float = 2.0
        """Softness, > 0: large keeps the initial weights."""
        largest: float = 4.0
        """Ratios above this count as this, >= 1."""

        def __post_init__(self) -> None:
            check_range("window", self.window, least=1)
            check_range("temperature", self.temperature, above=0)
            check_range("largest", self.largest, least=1)

    sums: Tensor
    means: Tensor
    steps: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.register_buffer("sums", torch.zeros(len(initial)))  # over the current window
        self.register_buffer("means", torch.zeros(2, len(initial)))  # of the last window but one, and the last
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def _take(self, terms: Tensor) -> None:
        """Close a full window, then add the batch to the current one; not for a batch that is not finite."""
        finite = torch.isfinite(terms).all()
        full = finite & (self.steps > 0) & (self.steps % self.options.window == 0)
        self.means.copy_(torch.where(full, torch.stack([self.means[1], self.sums / self.options.window]), self.means))
        self.sums.copy_(torch.where(finite, torch.where(full, 0, self.sums) + terms.to(self.sums), self.sums))
        self.steps += finite

    def forward(self, terms: Tensor) -> Tensor:
        if self.training:
            self._take(terms.detach())
        return (self.weights.to(terms) * terms).sum()

    @property
    def weights(self) -> Tensor:
        before, now = self.means.clamp_min(0)  # [L], [L]
        ratios = torch.where(before > 0, now / torch.where(before > 0, before, 1), torch.where(now > 0, torch.inf, 1))
        ratios = torch.where(self.steps > 2 * self.options.window, ratios, 1).clamp_max(self.options.largest)
        return torch.softmax(self.prior.log() + ratios / self.options.temperature, 0)


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [DynamicAverage]
