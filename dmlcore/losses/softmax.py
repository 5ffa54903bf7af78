"""What the losses with one logit per class share: their definition from logits, label smoothing beside the fused pass, and
classes with several centres."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmlcore.losses.base import ProxyLoss, Rows, Sides, pair_masks
from dmlcore.losses.geometry import masked_logsumexp, unit

CHUNK = 2**21
"""Similarities that the plain form of losses with several centres holds at a time; more are computed in chunks, and again for
the gradient."""


class SoftmaxLoss(ProxyLoss):
    """Cross-entropy over one logit per proxy: `logsumexp_c(l_c) - (1 - e) l_y - e mean_c(l_c)`, mean over samples.

    Subclasses set `scale`, the factor between similarities and logits, and may change the target's entry (`target_logits`) or
    smooth the labels (`label_smoothing`, the `e` above; not together with a changed entry). A sample without a proxy of its
    label has the value 0.
    """

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """Factor between similarities and logits."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target that is spread evenly over all classes, in [0, 1)."""
        return 0.0

    def target_logits(self, similarities: Tensor) -> Tensor:
        """What the target's logits would be at these similarities; elementwise."""
        return self.scale * similarities

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = torch.where(positive, self.target_logits(similarities), self.scale * similarities)  # [B, C]
        found = positive.any(1)
        values = masked_logsumexp(logits, positive | negative)
        values = values - (1 - self.label_smoothing) * masked_logsumexp(logits, positive)
        if self.label_smoothing:
            values = values - self.label_smoothing * logits.mean(1)
        values = torch.where(found, values, torch.zeros_like(values))[None]  # [1, B]
        return Rows(values, found.to(values)[None])

    def complete(self, rows: Rows, sides: Sides, given: Tensor | None) -> Rows:
        """The smoothed part of the target, which the kernel leaves out: one product with the proxies' mean."""
        if not self.label_smoothing:
            return rows
        assert sides.references is not None
        dtype = rows.values.dtype
        with torch.autocast(rows.values.device.type, enabled=False):
            anchors, proxies = sides.anchors.to(dtype), sides.references.to(dtype)
            logits = self.scale * (anchors @ (_lengths(proxies, self.normalise[1]) @ proxies / len(proxies)))  # [B]
            logits = logits * _lengths(anchors, self.normalise[0])
        smoothed = torch.where(rows.counts > 0, self.label_smoothing * logits, torch.zeros_like(rows.values))  # [1, B]
        return Rows(rows.values - smoothed, rows.counts)


class CentresLoss(ProxyLoss):
    """Cross-entropy over one logit per class that has several centres: `proxies` is `[C * K, D]`, the centres of a class side by
    side. Subclasses say what the similarity to a class is; `scale` and `target_logits` are as in `SoftmaxLoss`.
    """

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """Factor between similarities to classes and logits."""

    @abc.abstractmethod
    def class_similarities(self, similarities: Tensor) -> Tensor:
        """From cosines with centres `[B, C, K]` to similarities with classes `[B, C]`."""

    @abc.abstractmethod
    def target_logits(self, similarities: Tensor) -> Tensor:
        """What the target's logits would be at these similarities to classes; elementwise."""

    def _log_sums(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Log-sums over some classes, of all logits and of the target's: both `[B]`. Masks are per centre."""
        classes = self.class_similarities(similarities.unflatten(1, (-1, self.centres)))  # [B, c]
        positive, negative = positive[:, :: self.centres], negative[:, :: self.centres]
        logits = torch.where(positive, self.target_logits(classes), self.scale * classes)
        return masked_logsumexp(logits, positive | negative), masked_logsumexp(logits, positive)

    def _as_rows(self, everything: Tensor, target: Tensor) -> Rows:
        found = target > torch.finfo(target.dtype).min
        values = torch.where(found, everything - target, torch.zeros_like(target))[None]  # [1, B]
        return Rows(values, found.to(values)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        return self._as_rows(*self._log_sums(similarities, positive, negative))

    def dense_rows(self, sides: Sides) -> Rows:
        """Values and counts from chunks of classes; the similarities of a chunk are computed again for the gradient."""
        proxies, labels = sides.references, sides.reference_labels
        assert proxies is not None and labels is not None
        if len(sides.anchors) * len(proxies) <= CHUNK:
            return super().dense_rows(sides)

        def part(anchors: Tensor, centres: Tensor, centre_labels: Tensor) -> tuple[Tensor, Tensor]:
            masks = pair_masks(sides._replace(references=centres, reference_labels=centre_labels))
            return self._log_sums(anchors @ unit(centres).T, *masks)

        step = max(1, CHUNK // (len(sides.anchors) * self.centres)) * self.centres
        anchors = unit(sides.anchors)
        parts = [
            checkpoint(part, anchors, centres, centre_labels, use_reentrant=False)
            for centres, centre_labels in zip(proxies.split(step), labels.split(step), strict=True)
        ]
        everything, target = (torch.logsumexp(torch.stack(column), 0) for column in zip(*parts, strict=True))  # [B], [B]
        return self._as_rows(everything, target)


def widened_cosines(similarities: Tensor, margin: float) -> Tensor:
    """`cos(a + margin)` from `cos(a)`, and `cos(a) - margin sin(margin)` beyond `pi - margin`, where it would rise again.

    Args:
        similarities: cosines, any shape.
        margin: in radians, in [0, pi].
    """
    squares = 1 - similarities.square()
    apart = squares > 4 * torch.finfo(squares.dtype).eps
    sines = torch.where(apart, torch.sqrt(torch.where(apart, squares, torch.ones_like(squares))), torch.zeros_like(squares))
    widened = similarities * math.cos(margin) - sines * math.sin(margin)
    return torch.where(similarities >= -math.cos(margin), widened, similarities - margin * math.sin(margin))


def _lengths(vectors: Tensor, normalise: bool) -> Tensor:
    """The factors that scale vectors to unit norm (0 for a zero vector), or ones: `[N]`."""
    if not normalise:
        return vectors.new_ones(len(vectors))
    norms = torch.linalg.vector_norm(vectors, dim=1)  # [N]
    zero = norms <= 1e-12
    return torch.where(zero, torch.zeros_like(norms), 1 / torch.where(zero, torch.ones_like(norms), norms))
