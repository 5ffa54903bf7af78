"""Proxy-NCA loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, SoftmaxLoss, smoothing_of


class ProxyNca(SoftmaxLoss):
    """Cross-entropy over `-softmax_scale * d^2(x, proxy_c)` with `d` the Euclidean distance of unit vectors, mean over samples.

    Deviation: the positive takes part in the denominator, as in today's libraries. `variant = "wedl"` scales the proxies to
    norm 3 (so the logits are `6 cos` up to a constant) and smooths the target by 0.1; it ignores `softmax_scale`. Its public
    code spreads these 0.1 over the other classes only, which is `smoothing = "others"`.

    Source: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017, eq. 7; the variant:
    Zabihzadeh et al., "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning methods", 2021.
    """

    name = "proxy_nca"
    title = "Proxy-NCA loss"
    paper = "Movshovitz-Attias et al., ICCV 2017"
    aliases = ("ProxyNCALoss", "proxy_nca_loss")
    searched: ClassVar = {"softmax_scale": (1.0, 3.0, 6.0, 12.0)}

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `proxy_nca`."""

        softmax_scale: float = 1.0
        """Factor of the squared distances, > 0. Values of 4 to 16 train better than the paper's 1."""
        variant: Literal["standard", "wedl"] = "standard"
        """`wedl`: the form used by the ensemble of losses of 2021."""
        smoothing: Literal["all", "others"] = "all"
        """Over which classes `wedl` spreads a share of the target: all (`all`), or the `others` without the target."""

        def __post_init__(self) -> None:
            check_range("softmax_scale", self.softmax_scale, above=0)

    @property
    def scale(self) -> float:
        return 6.0 if self.options.variant == "wedl" else 2 * self.options.softmax_scale  # d^2 = constant - 2 |proxy| cos

    @property
    def label_smoothing(self) -> float:
        return smoothing_of(0.1, self.options.smoothing, self.num_classes) if self.options.variant == "wedl" else 0.0

    def functor_call(self) -> FunctorCall:
        return FunctorCall("proxy_nca", (self.scale, self.label_smoothing))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [ProxyNca]
