"""Binomial deviance loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows


class BinomialDeviance(PairLoss):
    """`log(1 + exp(-alpha (s_p - beta)))` averaged over all positive pairs, plus
    `log(1 + exp(alpha negative_cost (s_n - beta)))` averaged over all negative pairs.

    `variant = "wedl"`: `mean_p log(1 + exp(-alpha (s_p - beta))) + mean_n log(1 + exp(negative_cost (s_n - beta)))` of each
    anchor, mean over anchors. The cost is not multiplied by `alpha`, and classes weigh by their anchors instead of their pairs.
    An anchor without positives or without negatives has 0 in place of that mean.

    Source: Yi, Lei, Li, "Deep Metric Learning for Practical Person Re-Identification", 2014; defaults of Ustinova and
    Lempitsky, "Learning Deep Embeddings with Histogram Loss", NIPS 2016, eq. 7. The variant: Zabihzadeh et al., "Ensemble of
    Loss Functions to Improve Generalizability of Deep Metric Learning methods", 2021.
    """

    name = "binomial_deviance"
    title = "Binomial deviance loss"
    paper = "Yi et al., 2014"
    aliases = ("BinomialDevianceLoss", "BinDeviance")
    searched: ClassVar = {"alpha": (2.0, 0.5, 1.0, 4.0)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `binomial_deviance`."""

        alpha: float = 2.0
        """Sharpness, > 0."""
        beta: float = 0.5
        """Similarity that divides near from far, in [-1, 1]."""
        negative_cost: float = 25.0
        """By how much sharper negatives are than positives (`wedl`: the sharpness of negatives), > 0."""
        variant: Literal["standard", "wedl"] = "standard"
        """`wedl`: the form used by the ensemble of losses of 2021."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, above=0)
            check_range("beta", self.beta, least=-1, most=1)
            check_range("negative_cost", self.negative_cost, above=0)

    @property
    def _sharpness(self) -> tuple[float, float]:
        """Of positives and of negatives."""
        o = self.options
        return o.alpha, o.negative_cost * (1.0 if o.variant == "wedl" else o.alpha)

    def _averaged(self, rows: Rows) -> Rows:
        """With `wedl` the means of each anchor, otherwise the sums as they are."""
        if self.options.variant != "wedl":
            return rows
        return Rows(rows.values / rows.counts.clamp_min(1), torch.ones_like(rows.counts))

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        pull, push = self._sharpness
        nothing = torch.zeros_like(similarities)
        pull = torch.logaddexp(pull * (self.options.beta - similarities), nothing) * positive
        push = torch.logaddexp(push * (similarities - self.options.beta), nothing) * negative
        values = torch.stack([pull.sum(1), push.sum(1)])  # [2, A]
        return self._averaged(Rows(values, torch.stack([positive.sum(1), negative.sum(1)]).to(values)))

    def functor_call(self) -> FunctorCall:
        return FunctorCall("binomial_deviance", (*self._sharpness, self.options.beta))

    @property
    def completes(self) -> bool:  # type: ignore[override]
        return self.options.variant == "wedl"  # a mean per anchor

    def complete(self, rows: Rows, comparison: Comparison, context: Any) -> Rows:
        return self._averaged(rows)


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [BinomialDeviance]
