"""What the losses with one logit per class share: their definition from logits, label smoothing beside the fused pass, and
classes with several centres."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from dmlcore.kernels import FunctorCall
from dmlcore.losses.comparison import Comparison
from dmlcore.losses.distances import masked_logsumexp, unit
from dmlcore.losses.path import Rows
from dmlcore.losses.proxy import ProxyLoss
from dmlcore.losses.shards import ClassSums, class_sums, places_among

CHUNK = 2**19
"""Similarities that the plain form of losses with several centres holds at a time; more are computed in chunks, and again for
the gradient."""

MOST_CENTRES = 64
"""Centres per class that the kernels take."""

Part = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]
"""From unit anchors, some classes' centres and where those lie to two log-sums over these classes."""


class SoftmaxLoss(ProxyLoss):
    """Cross-entropy over one logit per proxy: `logsumexp_c(l_c) - (1 - e) l_y - e mean_c(l_c)`, mean over samples.

    Subclasses set `scale`, the factor between similarities and logits, and may change the target's entry (`target_logits`) or
    smooth the labels (`label_smoothing`, the `e` above; not together with a changed entry). A sample without a proxy of its
    label has the value 0.
    """

    divides = "sums"

    @property
    @abc.abstractmethod
    def scale(self) -> float:
        """Factor between similarities and logits."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target that is spread evenly over all classes, in [0, 1)."""
        return 0.0

    @property
    def why_not_sampled(self) -> str:
        if self.label_smoothing:
            return f"'{self.name}' spreads a share of the target over all classes, so none can be left out"
        return super().why_not_sampled

    def target_logits(self, similarities: Tensor) -> Tensor:
        """What the target's logits would be at these similarities; elementwise."""
        return self.scale * similarities

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = torch.where(positive, self.target_logits(similarities), self.scale * similarities)  # [B, C]
        has_proxy = positive.any(1)
        values = masked_logsumexp(logits, positive | negative)
        values = values - (1 - self.label_smoothing) * masked_logsumexp(logits, positive)
        if self.label_smoothing:
            values = values - self.label_smoothing * logits.mean(1)
        values = torch.where(has_proxy, values, torch.zeros_like(values))[None]  # [1, B]
        return Rows(values, has_proxy.to(values)[None])

    @property
    def completes(self) -> bool:  # type: ignore[override]
        return self.label_smoothing != 0

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        """The smoothed part of the target, which the kernel leaves out."""
        logits = self._mean_logits(comparison, rows.values.dtype)
        smoothed = torch.where(rows.counts > 0, self.label_smoothing * logits, torch.zeros_like(rows.values))  # [1, B]
        return Rows(rows.values - smoothed, rows.counts)

    def _mean_logits(self, comparison: Comparison, dtype: torch.dtype) -> Tensor:
        """`[B]` the sum of the logits of the classes that are here, over the number of all: one product with a mean."""
        assert comparison.references is not None
        count = len(comparison.references) if self.shard is None else self.num_classes
        with torch.autocast(comparison.anchors.device.type, enabled=False):
            anchors, proxies = comparison.anchors.to(dtype), comparison.references.to(dtype)
            logits = self.scale * (anchors @ (_lengths(proxies, self.normalise[1]) @ proxies / count))
            return logits * _lengths(anchors, self.normalise[0])

    def class_sums(self, comparison: Comparison) -> ClassSums:
        """Block by block of classes. Only the target's logit is computed once more, since a margin may change it."""
        assert comparison.references is not None and comparison.reference_labels is not None
        anchors = unit(comparison.anchors) if self.normalise[0] else comparison.anchors
        sides = (anchors, comparison.references, comparison.labels, comparison.reference_labels)
        others, products, is_here = class_sums(*sides, self.scale, self.normalise[1])
        targets = self.logits_of_targets(products, comparison)
        smoothed = -self.label_smoothing * self._mean_logits(comparison, anchors.dtype) if self.label_smoothing else None
        return ClassSums(others, torch.where(is_here, targets, torch.zeros_like(targets)), smoothed, self.label_smoothing)

    def logits_of_targets(self, products: Tensor, comparison: Comparison) -> Tensor:
        """The logits of the anchors' own classes, from the products of these anchors with their proxies: both `[B]`."""
        return self.target_logits(products)


def smoothing_of(share: float, spread: Literal["all", "others"], classes: int) -> float:
    """The share of the target that is spread over all classes alike, as `SoftmaxLoss.label_smoothing` says it.

    Args:
        share: that is taken from the target, in [0, 1).
        spread: over whom: all classes, the target among them (`all`), or the `others` only, `share / (classes - 1)` each.
        classes: number of classes. A single one has no others, and nothing is spread.
    """
    if spread == "all":
        return share
    return share * classes / (classes - 1) if classes > 1 else 0.0


class CentresLoss(ProxyLoss):
    """Cross-entropy over one logit per class that has several centres: `proxies` is `[C * K, D]`, the centres of a class side
    by side. Subclasses say what the similarity to a class is; `scale` and `target_logits` are as in `SoftmaxLoss`.
    """

    streams = False  # `dense_rows` bounds its memory by itself
    divides = "sums"

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

    @abc.abstractmethod
    def pooled_call(self) -> FunctorCall:
        """The functor and its options, of which the first is the number of centres."""

    def functor_call(self) -> FunctorCall | str:
        if self.centres > MOST_CENTRES:
            return f"'{self.name}' is fused for at most {MOST_CENTRES} centres per class"
        return self.pooled_call()

    def _log_sums(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Log-sums over some classes, of all logits and of the target's: both `[B]`. Masks are per centre."""
        classes = self.class_similarities(similarities.unflatten(1, (-1, self.centres)))  # [B, c]
        positive, negative = positive[:, :: self.centres], negative[:, :: self.centres]
        logits = torch.where(positive, self.target_logits(classes), self.scale * classes)
        return masked_logsumexp(logits, positive | negative), masked_logsumexp(logits, positive)

    def _as_rows(self, total: Tensor, target: Tensor) -> Rows:
        has_proxy = target > torch.finfo(target.dtype).min
        values = torch.where(has_proxy, total - target, torch.zeros_like(target))[None]  # [1, B]
        return Rows(values, has_proxy.to(values)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        return self._as_rows(*self._log_sums(similarities, positive, negative))

    def dense_rows(self, comparison: Comparison) -> Rows:
        """Values and counts from chunks of classes; what a chunk needs is computed again for the gradient."""
        proxies, labels = comparison.references, comparison.reference_labels
        assert proxies is not None and labels is not None
        if len(comparison.anchors) * len(proxies) <= CHUNK or torch.compiler.is_compiling():
            return super().dense_rows(comparison)

        def part(anchors: Tensor, centres: Tensor, at: slice) -> tuple[Tensor, Tensor]:
            masks = comparison._replace(references=centres, reference_labels=labels[at]).masks()
            return self._log_sums(anchors @ unit(centres).T, *masks)

        return self._as_rows(*_InChunks.apply(unit(comparison.anchors), proxies, part, self._chunk(comparison)))

    def _chunk(self, comparison: Comparison) -> int:
        """Centres of a chunk."""
        return max(1, CHUNK // (max(len(comparison.anchors), 1) * self.centres)) * self.centres

    def class_sums(self, comparison: Comparison) -> ClassSums:
        """From chunks of classes, as `dense_rows`."""
        proxies, labels = comparison.references, comparison.reference_labels
        assert proxies is not None and labels is not None
        each = self.centres

        def part(anchors: Tensor, centres: Tensor, at: slice) -> tuple[Tensor, Tensor]:
            positive, negative = comparison._replace(references=centres, reference_labels=labels[at]).masks()
            similarities = (anchors @ unit(centres).T).unflatten(1, (-1, each))
            classes, positive, negative = self.class_similarities(similarities), positive[:, ::each], negative[:, ::each]
            return masked_logsumexp(self.scale * classes, negative), masked_logsumexp(self.target_logits(classes), positive)

        others, targets = _InChunks.apply(unit(comparison.anchors), proxies, part, self._chunk(comparison))
        _, is_here = places_among(comparison.labels, labels[::each].contiguous())
        return ClassSums(others, torch.where(is_here, targets, torch.zeros_like(targets)))


class _InChunks(torch.autograd.Function):
    """Two log-sums over classes, chunk after chunk: what is kept for the gradient does not grow with their number."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, proxies: Tensor, part: Part, size: int) -> tuple[Tensor, ...]:
        totals = [anchors.new_full((len(anchors),), torch.finfo(anchors.dtype).min) for _ in range(2)]  # [B], [B]
        for first in range(0, len(proxies), size):
            at = slice(first, first + size)
            totals = [torch.logaddexp(*pair) for pair in zip(totals, part(anchors, proxies[at], at), strict=True)]
        ctx.save_for_backward(anchors, proxies, *totals)
        ctx.part, ctx.size = part, size
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        anchors, proxies, *totals = ctx.saved_tensors
        again = torch.is_grad_enabled()  # create_graph=True: then the graphs of all chunks stay
        total, parts = torch.zeros_like(anchors), []
        whole = None if again else torch.empty_like(proxies)  # filled in place: small pieces would scatter the heap
        for first in range(0, len(proxies), ctx.size):
            at = slice(first, first + ctx.size)
            with torch.enable_grad():
                a, p = anchors, proxies[at]
                if not again:
                    a, p = a.detach().requires_grad_(), p.detach().requires_grad_()
                sums = ctx.part(a, p, at)
                shares = [
                    cotangent * torch.exp(torch.minimum(part_sum, total_sum) - total_sum)
                    for cotangent, part_sum, total_sum in zip(cotangents, sums, totals, strict=True)
                ]
                if not again:
                    shares = [share.detach() for share in shares]
                of_anchors, of_proxies = torch.autograd.grad(sums, (a, p), shares, create_graph=again)
            if whole is None:
                total = total + of_anchors
                parts.append(of_proxies)
            else:
                total += of_anchors
                whole[at] = of_proxies
        return total, torch.cat(parts) if whole is None else whole, None, None


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
