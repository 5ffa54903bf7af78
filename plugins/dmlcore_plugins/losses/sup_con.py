"""Supervised contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


class SupCon(PairLoss):
    """`logsumexp_{p, n}(s / t) - mean_p(s_p / t)`, averaged over the anchors with positives and negatives.

    Deviation: an anchor without positives or without negatives has the value 0 and does not count. The value of any other is
    above 0, but may round to 0; it counts all the same.

    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, eq. 2.
    """

    name = "sup_con"
    title = "Supervised contrastive loss"
    paper = "Khosla et al., NeurIPS 2020"
    aliases = ("SupConLoss", "supcon", "supervised_contrastive")
    searched: ClassVar = {"temperature": (0.1, 0.05, 0.2, 0.4)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `sup_con`."""

        temperature: float = 0.1
        """Divisor of the similarities, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = similarities / self.options.temperature
        of_pairs = masked_logsumexp(logits, positive | negative)
        mean = (logits * positive).sum(1) / positive.sum(1).clamp_min(1)
        useful = positive.any(1) & negative.any(1)
        values = torch.where(useful, of_pairs - mean, torch.zeros_like(mean))[None]  # [1, A]
        return Rows(values, useful[None].to(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("sup_con", (self.options.temperature,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SupCon]
