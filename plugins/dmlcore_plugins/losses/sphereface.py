"""SphereFace loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, LossOptions, Rows, SoftmaxLoss, unit


class SphereFace(SoftmaxLoss):
    """Cross-entropy over `scale |x| cos(a_c)`, `a_c` the angle between sample and proxy, where the target's is
    `scale |x| ((-1)^k cos(margin a_y) - 2 k)` with `k = floor(margin a_y / pi)`; mean over samples. Proxies are scaled to unit
    norm, embeddings are not: their norm decides how sharp the softmax is.

    Deviation: a zero vector has no angle, its target's entry gets no margin (and all logits are 0).

    Source: Liu, Wen, Yu, Li, Raj, Song, "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017, eq. 7; the
    paper's annealing between this and the plain softmax is not part of it.
    """

    name = "sphereface"
    title = "SphereFace: angular softmax loss"
    paper = "Liu et al., CVPR 2017"
    aliases = ("SphereFaceLoss", "sphere_face", "ASoftmax")
    needs_norms = True
    normalise = (False, True)
    streams = False  # polynomials of the whole matrix
    completes = True  # type: ignore[assignment]
    divides = "sums"

    @dataclass(frozen=True, kw_only=True)
    class Options(LossOptions):
        """Options of `sphereface`."""

        margin: int = 4
        """Factor of the target's angle, a whole number in [1, 16]."""
        scale: float = 1.0
        """Factor of the logits, > 0."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=1, most=16)
            check_range("scale", self.scale, above=0)

    @property
    def scale(self) -> float:
        return self.options.scale

    def norms(self, comparison: Comparison) -> Tensor:
        """Norms of the samples, `[1, B]`."""
        with torch.autocast(comparison.anchors.device.type, enabled=False):
            anchors = comparison.anchors if comparison.anchors.dtype == torch.float64 else comparison.anchors.float()
            return torch.linalg.vector_norm(anchors, dim=1)[None]

    def dense_rows(self, comparison: Comparison) -> Rows:
        assert comparison.references is not None
        norms = self.norms(comparison)[0][:, None]  # [B, 1]
        products = comparison.anchors @ unit(comparison.references).T  # [B, C]
        positive, negative = comparison.masks()
        return self.row_values(torch.where(positive, self._widened(products, norms), products), positive, negative)

    def logits_of_targets(self, products: Tensor, comparison: Comparison) -> Tensor:
        return self.scale * self._widened(products, self.norms(comparison)[0])

    def _widened(self, products: Tensor, norms: Tensor) -> Tensor:
        """What the target's entry is at these products; a zero vector has no angle to widen."""
        cosines = products / torch.where(norms > 1e-12, norms, torch.ones_like(norms))
        cosines = cosines + (cosines.clamp(-1, 1) - cosines).detach()  # a rounding beyond 1 must not lose the gradient
        multiples = [torch.ones_like(cosines), cosines]  # cos(n a) as a polynomial of cos(a): no slope without bound
        for _ in range(self.options.margin - 1):
            multiples.append(2 * cosines * multiples[-1] - multiples[-2])
        turns = torch.floor(self.options.margin * torch.acos(cosines.detach()) / math.pi)
        widened = norms * ((1 - 2 * (turns % 2)) * multiples[-1] - 2 * turns)
        return torch.where(norms > 1e-12, widened, products)

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        """The kernel holds the norms constant and returns the derivative by them as a second value."""
        through_norms = rows.values[1:].detach() * (context - context.detach())
        return Rows(rows.values[:1] + through_norms, rows.counts[:1])

    def functor_call(self) -> FunctorCall:
        return FunctorCall("sphereface", (self.scale, float(self.options.margin)), given=self.norms)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [SphereFace]
