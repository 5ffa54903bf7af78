"""A toy loss for tests: all that a fused loss needs beside its header."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, PairLoss, Rows


class Toy(PairLoss):
    """`(1 - s_p)^2` summed over positives plus `relu(s_n - margin)^2` over negatives; mean over anchors."""

    name = "toy"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `toy`."""

        margin: float = 0.3
        """Cosine below which a negative costs nothing, in [-1, 1]."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=-1, most=1)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        pull = ((1 - similarities).square() * positive).sum(1)  # [A]
        push = (torch.relu(similarities - self.options.margin).square() * negative).sum(1)  # [A]
        return Rows((pull + push)[None], torch.ones_like(pull)[None])

    def functor_call(self) -> FunctorCall:
        return FunctorCall("toy", (self.options.margin,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Toy]
