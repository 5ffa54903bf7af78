"""Proxy-Anchor loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, LossOptions, ProxyLoss, Rows, masked_logsumexp


class ProxyAnchor(ProxyLoss):
    """Each proxy is an anchor: `log(1 + sum_p exp(-alpha (s_p - margin)))`, averaged over the proxies with a sample in the
    batch, plus `log(1 + sum_n exp(alpha (s_n + margin)))`, averaged over all proxies.

    Source: Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, eq. 4.
    """

    name = "proxy_anchor"
    title = "Proxy-Anchor loss"
    paper = "Kim et al., CVPR 2020"
    aliases = ("ProxyAnchorLoss", "proxy_anchor_loss")
    reshapes = True
    divides = "rows"
    searched: ClassVar = {"alpha": (32.0, 8.0, 16.0, 64.0)}

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `proxy_anchor`."""

        margin: float = 0.1
        """Margin added to the similarities, in [0, 1]."""
        alpha: float = 32.0
        """Sharpness, > 0."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=1)
            check_range("alpha", self.alpha, above=0)
            if self.reduction == "none":
                raise ConfigError("reduction 'none' is not defined: the rows of proxy_anchor are proxies, not samples")

    def reshaped(self, comparison: Comparison) -> Comparison:
        """The proxies are the anchors."""
        self.check(comparison)
        return Comparison(*self.present(comparison.labels), comparison.anchors, comparison.labels)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        alpha, margin = self.options.alpha, self.options.margin
        pull = masked_logsumexp(-alpha * (similarities - margin), positive, plus_one=True)  # [C]
        push = masked_logsumexp(alpha * (similarities + margin), negative, plus_one=True)
        values = torch.stack([pull, push])  # [2, C]
        return Rows(values, torch.stack([positive.any(1).to(values), torch.ones_like(push)]))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("proxy_anchor", (self.options.margin, self.options.alpha))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [ProxyAnchor]
