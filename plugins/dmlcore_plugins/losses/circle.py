"""Circle loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


class Circle(PairLoss):
    """`softplus(logsumexp_n(gamma [s_n + m]+ (s_n - m)) + logsumexp_p(-gamma [1 + m - s_p]+ (s_p - 1 + m)))`, averaged over the
    anchors with a non-zero value; the factors `[.]+` are constants for the gradient.

    An anchor without positives or without negatives has the value 0.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020, eq. 5-9.
    """

    name = "circle"
    title = "Circle loss"
    paper = "Sun et al., CVPR 2020"
    aliases = ("CircleLoss", "circle_loss")
    holds_constants = True  # the weights of the paper
    searched: ClassVar = {"gamma": (80.0, 20.0, 40.0, 160.0)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `circle`."""

        m: float = 0.4
        """Relaxation of the decision boundary, in (0, 1)."""
        gamma: float = 80.0
        """Scale of the similarities, > 0. The paper: 80 for retrieval, 128 re-identification, 256 faces."""

        def __post_init__(self) -> None:
            check_range("m", self.m, above=0, below=1)
            check_range("gamma", self.gamma, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        m, gamma, s = self.options.m, self.options.gamma, similarities
        pull = masked_logsumexp(-gamma * torch.relu(1 + m - s.detach()) * (s - (1 - m)), positive)
        push = masked_logsumexp(gamma * torch.relu(s.detach() + m) * (s - m), negative)
        useful = positive.any(1) & negative.any(1)
        total = torch.where(useful, pull, torch.zeros_like(pull)) + torch.where(useful, push, torch.zeros_like(push))
        # not F.softplus: it switches to the identity at 20 and so rounds at 2e-9
        values = torch.where(useful, torch.logaddexp(total, torch.zeros_like(total)), torch.zeros_like(total))[None]  # [1, A]
        return Rows(values, (values > 0).to(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("circle", (self.options.m, self.options.gamma))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Circle]
