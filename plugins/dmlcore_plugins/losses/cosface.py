"""CosFace loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, SoftmaxLoss


class CosFace(SoftmaxLoss):
    """Cross-entropy over `scale * cos(x, proxy_c)` where the target's cosine is lowered by `margin`, mean over samples.

    Source: Wang, Wang, Zhou, Ji, Gong, Zhou, Li, Liu, "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018,
    eq. 4.
    """

    name = "cosface"
    title = "CosFace: large margin cosine loss"
    paper = "Wang et al., CVPR 2018"
    aliases = ("CosFaceLoss", "cos_face", "AMSoftmax")

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `cosface`."""

        margin: float = 0.35
        """What the target's cosine is lowered by, in [0, 2]."""
        scale: float = 64.0
        """Factor of the cosines, > 0."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=2)
            check_range("scale", self.scale, above=0)

    @property
    def scale(self) -> float:
        return self.options.scale

    def target_logits(self, similarities: Tensor) -> Tensor:
        return self.scale * (similarities - self.options.margin)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("cosface", (self.scale, self.options.margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [CosFace]
