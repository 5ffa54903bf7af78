"""ArcFace loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, SoftmaxLoss, widened_cosines


class ArcFace(SoftmaxLoss):
    """Cross-entropy over `scale * cos(a_c)`, `a_c` the angle between sample and proxy, where the target's is
    `scale * cos(a_y + margin)`; mean over samples.

    Where `a_y > 180 - margin` the widened cosine would rise again: there the target's is `scale * (cos(a_y) - m sin(m))` with
    `m` the margin in radians, as in the authors' code and in pytorch-metric-learning. The value jumps there, the gradient stays
    that of a falling function. Where sample and target's proxy coincide or are opposite to the last bits of their cosine, the
    slope of the sine has no bound; it is taken as 0, so that gradients stay finite (pytorch-metric-learning gives NaN).

    The public code of ooDML (Milbich et al., NeurIPS 2021) raises cosines below 0 to 1e-10, so that a sample far from its proxy
    gets no gradient. That is not followed here.

    Source: Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, eq. 3.
    """

    name = "arcface"
    title = "ArcFace: additive angular margin loss"
    paper = "Deng et al., CVPR 2019"
    aliases = ("ArcFaceLoss", "arc_face")

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `arcface`."""

        margin: float = 28.6
        """What the target's angle is widened by, in degrees, in [0, 180]; 28.6 degrees are the paper's 0.5 radians."""
        scale: float = 64.0
        """Factor of the cosines, > 0."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=180)
            check_range("scale", self.scale, above=0)

    @property
    def scale(self) -> float:
        return self.options.scale

    def target_logits(self, similarities: Tensor) -> Tensor:
        return self.scale * widened_cosines(similarities, math.radians(self.options.margin))

    def functor_call(self) -> FunctorCall:
        margin = math.radians(self.options.margin)
        return FunctorCall("arcface", (self.scale, math.cos(margin), math.sin(margin), margin * math.sin(margin)))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [ArcFace]
