"""Proxy-NCA loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, ProxyLoss, Rows, masked_logsumexp


class ProxyNca(ProxyLoss):
    """Cross-entropy over `-softmax_scale * d^2(x, proxy_c)` with `d` the Euclidean distance of unit vectors, mean over samples.

    Deviation: the positive takes part in the denominator, as in today's libraries. `variant = "wedl"` scales the proxies to
    norm 3 (so the logits are `6 cos` up to a constant) and smooths the target by 0.1; it ignores `softmax_scale`.

    Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017, eq. 7; the variant:
    Zabihzadeh et al., "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning methods", 2021.
    """

    name = "proxy_nca"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `proxy_nca`."""

        softmax_scale: float = 1.0
        """Factor of the squared distances, > 0. Values of 4 to 16 train better than the paper's 1."""
        variant: Literal["standard", "wedl"] = "standard"
        """`wedl`: the form used by the ensemble of losses of 2021."""

        def __post_init__(self) -> None:
            check_range("softmax_scale", self.softmax_scale, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        wedl = self.options.variant == "wedl"
        logits = (6.0 if wedl else 2 * self.options.softmax_scale) * similarities  # d^2 = constant - 2 |proxy| cos
        found = positive.any(1)
        target = masked_logsumexp(logits, positive)
        if wedl:
            target = 0.9 * target + 0.1 * logits.mean(1)
        values = torch.where(found, masked_logsumexp(logits, positive | negative) - target, torch.zeros_like(target))[
            None
        ]  # [1, B]
        return Rows(values, found.to(values)[None])

    def functor_call(self) -> FunctorCall | str:
        if self.options.variant != "standard":
            return f"proxy_nca with variant '{self.options.variant}' has no fused form"
        return FunctorCall("proxy_nca", (2 * self.options.softmax_scale,))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [ProxyNca]
