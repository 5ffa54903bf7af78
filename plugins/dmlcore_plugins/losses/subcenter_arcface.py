"""Sub-centre ArcFace loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import CentresLoss, Comparison, LossOptions, unit, widened_cosines


class SubCenterArcFace(CentresLoss):
    """ArcFace where each class has several centres and the nearest one counts:
    `cos(a_c) = max_k cos(x, proxy_ck)`; `proxies` is `[C * sub_centers, D]`, the centres of a class side by side.

    Beyond 180 degrees minus the margin and at coincident points as `arcface`. Exact ties of the nearest share the gradient.

    Source: Deng, Guo, Liu, Gong, Zafeiriou, "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces",
    ECCV 2020, section 3.
    """

    name = "subcenter_arcface"
    title = "Sub-centre ArcFace loss"
    paper = "Deng et al., ECCV 2020"
    aliases = ("SubCenterArcFaceLoss", "sub_center_arcface")

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `subcenter_arcface`."""

        margin: float = 28.6
        """What the target's angle is widened by, in degrees, in [0, 180]."""
        scale: float = 64.0
        """Factor of the cosines, > 0."""
        sub_centers: int = 3
        """Centres per class, >= 1."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=180)
            check_range("scale", self.scale, above=0)
            check_range("sub_centers", self.sub_centers, least=1)

    @property
    def centres(self) -> int:
        return self.options.sub_centers

    @property
    def scale(self) -> float:
        return self.options.scale

    def class_similarities(self, similarities: Tensor) -> Tensor:
        return similarities.amax(2)

    def target_logits(self, similarities: Tensor) -> Tensor:
        return self.scale * widened_cosines(similarities, math.radians(self.options.margin))

    def pooled_call(self) -> FunctorCall:
        m = math.radians(self.options.margin)
        options = (float(self.centres), self.scale, math.cos(m), math.sin(m), m * math.sin(m))
        return FunctorCall("subcenter_arcface", options)

    @torch.no_grad()
    def get_outliers(
        self, embeddings: Tensor, labels: Tensor, threshold: float = 75.0, return_dominant_centers: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Samples far from their class's dominant centre, the one that is nearest to most of the class's samples.

        Args:
            embeddings: `[B, D]`.
            labels: `[B]` int64, 0..C-1.
            threshold: angle in degrees beyond which a sample is an outlier.
            return_dominant_centers: also return those centres.

        Returns:
            Indices of the outliers `[M]`, ascending; and the dominant centres `[C, D]` (zeros for a class without samples).
            Deviation: pytorch-metric-learning orders the outliers by class, returns the centres transposed and in any case,
            and leaves those of absent classes uninitialised.
        """
        self.check(Comparison(embeddings, labels))
        count, centres = self.centres, unit(self.proxies).unflatten(0, (-1, self.centres))  # [C, K, D]
        cosines = torch.einsum("bd,bkd->bk", unit(embeddings.to(centres.dtype)), centres[labels])  # [B, K]
        nearest = torch.bincount(labels * count + cosines.argmax(1), minlength=self.num_classes * count)
        dominant = nearest.unflatten(0, (-1, count)).argmax(1)  # [C]
        angles_beyond = cosines.gather(1, dominant[labels][:, None])[:, 0] < math.cos(math.radians(threshold))
        outliers = angles_beyond.nonzero()[:, 0]  # [M]
        if not return_dominant_centers:
            return outliers
        dominant_centres = self.proxies.unflatten(0, (-1, count))[
            torch.arange(self.num_classes, device=labels.device), dominant
        ]
        absent = torch.bincount(labels, minlength=self.num_classes) == 0
        return outliers, torch.where(absent[:, None], torch.zeros_like(dominant_centres), dominant_centres)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SubCenterArcFace]
