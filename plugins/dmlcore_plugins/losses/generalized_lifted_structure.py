"""Generalised lifted structure loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, distances, masked_logsumexp


class GeneralizedLiftedStructure(PairLoss):
    """`relu(logsumexp_p(d_p - pos_margin) + logsumexp_n(neg_margin - d_n))`, `d` the Euclidean distance of unit vectors, mean
    over all anchors.

    Deviation: an anchor without positives or without negatives has 0 in place of that log-sum, as in
    pytorch-metric-learning, and so still costs something; the paper's batches have both for every anchor.

    Source: Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, eq. 8.
    """

    name = "generalized_lifted_structure"
    title = "Generalised lifted structure loss"
    paper = "Hermans et al., 2017"
    aliases = ("GeneralizedLiftedStructureLoss", "generalised_lifted_structure")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `generalized_lifted_structure`."""

        neg_margin: float = 1.0
        """Distance below which a negative is too near, >= 0."""
        pos_margin: float = 0.0
        """Distance above which a positive is too far, >= 0."""

        def __post_init__(self) -> None:
            check_range("neg_margin", self.neg_margin, least=0)
            check_range("pos_margin", self.pos_margin, least=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        d = distances(similarities)
        pull = masked_logsumexp(d - self.options.pos_margin, positive)
        push = masked_logsumexp(self.options.neg_margin - d, negative)
        pull = torch.where(positive.any(1), pull, torch.zeros_like(pull))
        push = torch.where(negative.any(1), push, torch.zeros_like(push))
        values = torch.relu(pull + push)[None]  # [1, A]
        return Rows(values, torch.ones_like(values))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("generalized_lifted_structure", (self.options.neg_margin, self.options.pos_margin))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [GeneralizedLiftedStructure]
