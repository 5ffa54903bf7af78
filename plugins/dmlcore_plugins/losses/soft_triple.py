"""SoftTriple loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import CentresLoss, ClassSums, Comparison, LossOptions, Rows, distances, unit


class SoftTriple(CentresLoss):
    """Cross-entropy over `la * (S_c - margin [c = y])` where `S_c = sum_k softmax_k(s_ck / gamma) s_ck` and `s_ck` is the
    cosine of the sample with centre `k` of class `c`; mean over samples. `proxies` is `[C * centers_per_class, D]`, the centres
    of a class side by side.

    `tau` times the paper's regulariser is added to every sample's value: the Euclidean distances of a class's centres, summed
    over pairs and classes, divided by `C K (K - 1)`; it pulls the centres of a class together. Deviations: `tau` is 0 by
    default, as in pytorch-metric-learning, where it is a regulariser of its own (the paper uses 0.2); coincident centres have
    distance 0 with gradient 0 instead of the 1e-5 under the root of the authors' code.

    Source: Qian, Shang, Sun, Hu, Li, Jin, "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019, eq. 5-8.
    """

    name = "soft_triple"
    title = "SoftTriple loss"
    paper = "Qian et al., ICCV 2019"
    aliases = ("SoftTripleLoss", "softtriple")
    streams = False  # `dense_rows` bounds its memory by itself
    divides = "sums"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `soft_triple`."""

        la: float = 20.0
        """Factor of the similarities to classes, > 0."""
        gamma: float = 0.1
        """Temperature between the centres of a class, > 0."""
        margin: float = 0.01
        """What the target's similarity is lowered by, in [0, 2]."""
        centers_per_class: int = 10
        """Centres per class, >= 1."""
        tau: float = 0.0
        """Factor of the distances between a class's centres, >= 0."""

        def __post_init__(self) -> None:
            check_range("la", self.la, above=0)
            check_range("gamma", self.gamma, above=0)
            check_range("margin", self.margin, least=0, most=2)
            check_range("centers_per_class", self.centers_per_class, least=1)
            check_range("tau", self.tau, least=0)

    @property
    def centres(self) -> int:
        return self.options.centers_per_class

    @property
    def scale(self) -> float:
        return self.options.la

    def class_similarities(self, similarities: Tensor) -> Tensor:
        return (torch.softmax(similarities / self.options.gamma, 2) * similarities).sum(2)

    def target_logits(self, similarities: Tensor) -> Tensor:
        return self.scale * (similarities - self.options.margin)

    def pooled_call(self) -> FunctorCall:
        o = self.options
        return FunctorCall("soft_triple", (float(self.centres), o.gamma, self.scale, o.margin))

    @property
    def completes(self) -> bool:  # type: ignore[override]
        return self.options.tau != 0 and self.centres > 1

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        with torch.autocast(rows.values.device.type, enabled=False):
            return self._with_regulariser(rows, comparison)

    def dense_rows(self, comparison: Comparison) -> Rows:
        return self._with_regulariser(super().dense_rows(comparison), comparison)

    def _with_regulariser(self, rows: Rows, comparison: Comparison) -> Rows:
        if not self.options.tau or self.centres == 1:
            return rows
        assert comparison.references is not None
        return Rows(rows.values + self._regulariser(comparison.references.to(rows.values.dtype)) * rows.counts, rows.counts)

    def _regulariser(self, proxies: Tensor) -> Tensor:
        """What the classes that are here add to every sample's value."""
        centres = unit(proxies).unflatten(0, (len(proxies) // self.centres, self.centres))  # [C, K, D]
        first, second = torch.triu_indices(self.centres, self.centres, 1, device=centres.device)
        cosines = (centres @ centres.mT)[:, first, second]  # [C, K (K - 1) / 2]
        return self.options.tau * distances(cosines).sum() / (self.num_classes * self.centres * (self.centres - 1))

    @property
    def why_not_sampled(self) -> str:
        text = "'soft_triple' with tau compares the centres of all classes, so none can be left out"
        return text if self.completes else super().why_not_sampled

    def class_sums(self, comparison: Comparison) -> ClassSums:
        sums = super().class_sums(comparison)
        if not self.options.tau or self.centres == 1:
            return sums
        assert comparison.references is not None
        return sums._replace(added=self._regulariser(comparison.references).expand(len(sums.targets)))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SoftTriple]
