"""Intra-pair variance loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, unit


class IntraPairVariance(PairLoss):
    """`relu((1 - pos_eps) mean(s_p) - s_p)^2` averaged over all positive pairs, plus `relu(s_n - (1 + neg_eps) mean(s_n))^2`
    averaged over all negative pairs; the means are over the same pairs, and gradients flow through them.

    Meant beside a loss that separates the classes, usually `tuplet_margin`: alone it is 0 where everything collapses.

    Fused; the means come from sums of vectors per class, without similarities, and the pass over the pairs is the only one.
    The kernels find them too where a batch is compared with itself on the CPU.
    With a custom relation or a miner it runs in plain PyTorch.

    Source: Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019: its second term.
    """

    name = "intra_pair_variance"
    title = "Intra-pair variance loss"
    paper = "Yu and Tao, ICCV 2019"
    aliases = ("IntraPairVarianceLoss",)
    streams = False  # the means are those of the whole batch
    completes = True
    fuses_miners = False  # the sums per class know nothing of mined pairs
    fuses_relations = False  # they know equal labels only

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `intra_pair_variance`."""

        pos_eps: float = 0.01
        """By what share a positive may be less similar than their mean, in [0, 1]."""
        neg_eps: float = 0.01
        """By what share a negative may be more similar than their mean, in [0, 1]."""

        def __post_init__(self) -> None:
            check_range("pos_eps", self.pos_eps, least=0, most=1)
            check_range("neg_eps", self.neg_eps, least=0, most=1)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        def mean(mask: Tensor) -> Tensor:
            return (similarities * mask).sum() / mask.sum().clamp_min(1)

        shortfall = torch.relu((1 - self.options.pos_eps) * mean(positive) - similarities) * positive
        excess = torch.relu(similarities - (1 + self.options.neg_eps) * mean(negative)) * negative
        values = torch.stack([shortfall.square().sum(1), excess.square().sum(1)])  # [2, A]
        return Rows(values, torch.stack([positive.sum(1), negative.sum(1)]).to(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("intra_pair_variance", (self.options.pos_eps, self.options.neg_eps), given=self.means)

    def functor_call_of_batch(self) -> FunctorCall:
        return FunctorCall("intra_pair_variance_of_batch", (self.options.pos_eps, self.options.neg_eps))

    def means(self, comparison: Comparison) -> Tensor:
        """`[2, A]`, the same for every anchor: the mean cosines of all positive and of all negative pairs."""
        return torch.stack(mean_similarities(comparison))[:, None].expand(2, len(comparison.anchors))

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        if context is None:  # the kernels found the means, and what follows from them
            return rows
        values, slopes = rows.values.split(2)
        means = context.to(values.dtype)
        return Rows(values + slopes.detach() * (means - means.detach()), rows.counts[:2])


def mean_similarities(comparison: Comparison) -> tuple[Tensor, Tensor]:
    """The mean cosine of all positive pairs and of all negative pairs (0 where there are none), in O((A + N) D).

    The cosines of an anchor with all vectors of a class add up to its product with the sum of the class.
    """
    labels, other_labels = comparison.labels.contiguous(), comparison.other_labels.contiguous()
    dtype = comparison.dtype
    if comparison.references is None and len(labels) and not torch.compiler.is_compiling():
        return _MeansOfBatch.apply(comparison.anchors.to(dtype), labels)
    if len(other_labels) == 0 or len(labels) == 0:
        nothing = comparison.anchors.to(dtype).sum() * 0
        return nothing, nothing
    anchors, references = unit(comparison.anchors.to(dtype)), unit(comparison.other_vectors.to(dtype))
    ordered = other_labels.sort().values
    place = torch.searchsorted(ordered, other_labels)  # [N]: a class is known by the first place of its label
    sums = torch.zeros_like(references).index_add(0, place, references)
    sizes = references.new_zeros(len(references)).index_add(0, place, torch.ones_like(references[:, 0]))
    at = torch.searchsorted(ordered, labels).clamp_max(len(ordered) - 1)  # [A]
    has_class = ordered[at] == labels
    same = (anchors * sums[at]).sum(1) * has_class  # [A]
    total = (anchors * references.sum(0)).sum(1)
    same_count, count = sizes[at] * has_class, torch.full_like(same, len(references))
    own = comparison.own_index
    if own is not None:
        is_own, own = own >= 0, own.clamp_min(0)
        with_itself = (anchors * references[own]).sum(1) * is_own
        is_same = (other_labels[own] == labels) & is_own
        same, same_count = same - with_itself * is_same, same_count - is_same.to(dtype)
        total, count = total - with_itself, count - is_own.to(dtype)
    positives, negatives = same_count.sum(), (count - same_count).sum()
    return same.sum() / positives.clamp_min(1), (total - same).sum() / negatives.clamp_min(1)


class _MeansOfBatch(torch.autograd.Function):
    """The same of a batch with itself, as one node: on a small batch autograd takes longer than the arithmetic.

    With unit vectors `u`, the sum `S` of all of them and `S_c` of a class, the cosines of all positives add up to
    `sum_c |S_c|^2 - sum |u|^2`, and those of all negatives to `|S|^2 - sum_c |S_c|^2`.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)  # [N, 1]
        factors = torch.where(norms > 1e-12, 1 / norms, torch.zeros_like(norms))  # a zero vector stays zero
        units = embeddings * factors  # [N, D]
        place = torch.searchsorted(labels.sort().values, labels)  # [N]: a class is known by the first place of its label
        sums = torch.zeros_like(units).index_add_(0, place, units)
        sizes = norms.new_zeros(len(labels)).index_add_(0, place, torch.ones_like(factors[:, 0]))
        total = units.sum(0)  # [D]
        same = sums.square().sum()
        same_pairs = sizes.square().sum()
        positives, negatives = (same_pairs - len(labels)).clamp_min(1), (len(labels) ** 2 - same_pairs).clamp_min(1)
        ctx.save_for_backward(units, factors, sums.index_select(0, place), total, positives, negatives)
        return (same - units.square().sum()) / positives, (total.square().sum() - same) / negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_positives: Tensor, of_negatives: Tensor) -> tuple[Tensor, None]:
        units, factors, of_class, total, positives, negatives = ctx.saved_tensors
        positive, negative = 2 * of_positives / positives, 2 * of_negatives / negatives
        grad = positive * (of_class - units) + negative * (total - of_class)  # [N, D]
        return (grad - (grad * units).sum(1, keepdim=True) * units) * factors, None


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [IntraPairVariance]
