"""Normalised softmax loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, ProxyLoss, Rows, masked_logsumexp


class NormSoftmax(ProxyLoss):
    """Cross-entropy over `cos(x, proxy_c) / temperature`, mean over samples.

    Source: Wang, Xiang, Cheng, Yuille, "NormFace", ACM Multimedia 2017, eq. 6; Zhai, Wu, "Classification is a Strong Baseline
    for Deep Metric Learning", BMVC 2019, eq. 2.
    """

    name = "norm_softmax"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `norm_softmax`."""

        temperature: float = 0.05
        """Divisor of the cosines, > 0."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = similarities / self.options.temperature
        found = positive.any(1)
        target = masked_logsumexp(logits, positive)
        values = torch.where(found, masked_logsumexp(logits, positive | negative) - target, torch.zeros_like(target))[
            None
        ]  # [1, B]
        return Rows(values, found.to(values)[None])

    def functor_call(self) -> FunctorCall:
        return FunctorCall("norm_softmax", (1 / self.options.temperature,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NormSoftmax]
