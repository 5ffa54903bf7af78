"""Decoupled contrastive learning: the example of `docs/guide/plugins.md`. Install it with `pip install
./plugins/dmlcore_example`, then `dmlcore train --plugins ms,dcl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


class Dcl(PairLoss):
    """`logsumexp_n(s_n / temperature) - s_p / temperature`, mean over all pairs of anchor and positive. `s` are cosines.

    NT-Xent without the positive in its own denominator: the gradient of a pair that is close already does not fade. The value
    has no lower bound. An anchor without negatives, or without positives, does not count.

    Deviation: positives and negatives are those of labels, not two views of one image.

    Source: Yeh, Hong, Hsu, Liu, Chen, LeCun, "Decoupled Contrastive Learning", ECCV 2022, the loss `L_DC`.
    """

    name = "dcl"
    header: ClassVar[Path] = Path(__file__).with_name("dcl.h")
    searched: ClassVar = {"temperature": (0.1, 0.05, 0.2, 0.4)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `dcl`."""

        temperature: float = 0.1
        """Divisor of the similarities, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = similarities / self.options.temperature  # [A, N]
        count = positive.sum(1) * negative.any(1)  # [A] positives of anchors that have negatives
        push = torch.where(count > 0, masked_logsumexp(logits, negative), torch.zeros_like(logits[:, 0]))
        pull = torch.where(count > 0, (logits * positive).sum(1), torch.zeros_like(push))
        return Rows((count * push - pull)[None], count.to(push)[None])  # [1, A]

    def functor_call(self) -> FunctorCall:
        return FunctorCall("dcl", (self.options.temperature,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Dcl]
