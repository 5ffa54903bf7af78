"""Neighbourhood components analysis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, masked_logsumexp


class Nca(PairLoss):
    """`-log(sum_p exp(-softmax_scale d_p^2) / sum_{p, n} exp(-softmax_scale d^2))`, `d` the Euclidean distance of unit vectors,
    mean over the anchors that have a positive.

    Deviations: the probability of a correct neighbour enters by its logarithm (the paper's second objective), and no linear
    map is learnt: the embedding takes its place. A batch in which no class has two samples gives 0, where
    pytorch-metric-learning's value is not a number.

    Source: Goldberger, Roweis, Hinton, Salakhutdinov, "Neighbourhood Components Analysis", NIPS 2004, eq. 1-2 and 6.
    """

    name = "nca"
    title = "Neighbourhood components analysis"
    paper = "Goldberger et al., NIPS 2004"
    aliases = ("NCALoss", "neighbourhood_components_analysis")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `nca`."""

        softmax_scale: float = 1.0
        """Factor of the squared distances, > 0."""

        def __post_init__(self) -> None:
            check_range("softmax_scale", self.softmax_scale, above=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        logits = 2 * self.options.softmax_scale * similarities  # -c d^2 = 2 c s - 2 c
        has_positives = positive.any(1)
        missed = masked_logsumexp(logits, positive | negative) - masked_logsumexp(logits, positive)
        values = torch.where(has_positives, missed, torch.zeros_like(missed))[None]  # [1, A]
        return Rows(values, has_positives.to(values)[None])

    def functor_call(self) -> FunctorCall:
        return FunctorCall("nca", (2 * self.options.softmax_scale, 0.0))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [Nca]
