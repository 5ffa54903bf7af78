"""Lifted structure loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, distances, masked_logsumexp


class LiftedStructure(PairLoss):
    """`relu(log(sum_n exp(neg_margin - d_an) + sum_n exp(neg_margin - d_pn)) + d_ap - pos_margin)^2 / 2`, mean over all pairs
    of anchor and positive, `d` the Euclidean distance of unit vectors: the negatives of both points push.

    With references the negatives of both are taken among the references. A pair of which neither point has a negative has the
    value 0.

    Fused: a batch against itself. With references the plain form compares the references with each other, `[N, N]`.

    Deviations: `pos_margin`, as in pytorch-metric-learning (0 is the paper); distances of unit vectors.

    Source: Song, Xiang, Jegelka, Savarese, "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016, eq. 4.
    """

    name = "lifted_structure"
    title = "Lifted structure loss"
    paper = "Song et al., CVPR 2016"
    aliases = ("LiftedStructureLoss", "lifted_structured")
    streams = False  # the negatives of a reference are looked for among all references

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `lifted_structure`."""

        neg_margin: float = 1.0
        """Distance below which a negative is too near, >= 0."""
        pos_margin: float = 0.0
        """Distance above which a positive is too far, >= 0."""

        def __post_init__(self) -> None:
            check_range("neg_margin", self.neg_margin, least=0)
            check_range("pos_margin", self.pos_margin, least=0)

    def _log_negatives(self, similarities: Tensor, negative: Tensor) -> Tensor:
        return masked_logsumexp(self.options.neg_margin - distances(similarities), negative)

    def _pairs(self, similarities: Tensor, positive: Tensor, own: Tensor, theirs: Tensor) -> Rows:
        """From the log-sums of the anchors `[A]` and of the references `[N]`."""
        joint = torch.logaddexp(own[:, None], theirs[None, :])  # [A, N]
        hinges = torch.relu(joint + distances(similarities) - self.options.pos_margin)
        values = torch.where(positive, hinges.square() / 2, torch.zeros_like(hinges)).sum(1)
        return Rows(values[None], positive.sum(1).to(values)[None])

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        own = self._log_negatives(similarities, negative)
        return self._pairs(similarities, positive, own, own)

    def dense_rows(self, comparison: Comparison) -> Rows:
        if comparison.references is None or comparison.reference_labels is None:
            return super().dense_rows(comparison)
        among = Comparison(comparison.references, comparison.reference_labels, relation=comparison.relation)
        theirs = self._log_negatives(self.similarities(among), among.masks()[1])  # [N]
        similarities, (positive, negative) = self.similarities(comparison), comparison.masks()
        return self._pairs(similarities, positive, self._log_negatives(similarities, negative), theirs)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("lifted_structure", (self.options.neg_margin, self.options.pos_margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [LiftedStructure]
