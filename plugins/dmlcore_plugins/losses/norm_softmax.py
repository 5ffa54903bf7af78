"""Normalised softmax loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import LossOptions, SoftmaxLoss


class NormSoftmax(SoftmaxLoss):
    """Cross-entropy over `cos(x, proxy_c) / temperature`, mean over samples.

    Source: Wang, Xiang, Cheng, Yuille, "NormFace", ACM Multimedia 2017, eq. 6; Zhai, Wu, "Classification is a Strong Baseline
    for Deep Metric Learning", BMVC 2019, eq. 2. Label smoothing: Szegedy et al., CVPR 2016, section 7.
    """

    name = "norm_softmax"
    title = "Normalised softmax loss"
    paper = "Wang et al., ACM MM 2017; Zhai and Wu, BMVC 2019"
    aliases = ("NormalizedSoftmaxLoss", "normalized_softmax", "NormFace")
    searched: ClassVar = {"temperature": (0.05, 0.025, 0.1, 0.2)}

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `norm_softmax`."""

        temperature: float = 0.05
        """Divisor of the cosines, > 0."""
        label_smoothing: float = 0.0
        """Share of the target spread evenly over all classes, in [0, 1)."""

        def __post_init__(self) -> None:
            check_range("temperature", self.temperature, above=0)
            check_range("label_smoothing", self.label_smoothing, least=0, below=1)

    @property
    def scale(self) -> float:
        return 1 / self.options.temperature

    @property
    def label_smoothing(self) -> float:
        return self.options.label_smoothing

    def functor_call(self) -> FunctorCall:
        return FunctorCall("norm_softmax", (self.scale, self.label_smoothing))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NormSoftmax]
