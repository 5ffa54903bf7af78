"""Multi-Similarity loss with its own pair mining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, PairOptions, Rows, masked_logsumexp


class MultiSimilarity(PairLoss):
    """`log(1 + sum_p exp(-alpha (s_p - base))) / alpha + log(1 + sum_n exp(beta (s_n - base))) / beta`, mean over
    all anchors or, with `average = "active"`, over those with a value above 0, as the public code of ooDML has it.

    Mining keeps the positives with `s_p - epsilon < max_n s_n` and the negatives with `s_n + epsilon > min_p s_p`; a negative
    of an anchor without positives is dropped, and the other way round.

    Source: Wang, Han, Huang, Dong, Scott, "Multi-Similarity Loss with General Pair Weighting", CVPR 2019, eq. 9, 13, 15.
    """

    name = "ms"
    title = "Multi-Similarity loss"
    paper = "Wang et al., CVPR 2019"
    aliases = ("multi_similarity", "MultiSimilarityLoss", "multi_similarity_loss")
    searched: ClassVar = {"beta": (50.0, 10.0, 25.0, 100.0)}

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `ms`."""

        alpha: float = 2.0
        """Sharpness for positives, > 0."""
        beta: float = 50.0
        """Sharpness for negatives, > 0."""
        base: float = 0.5
        """Similarity that divides near from far, in [-1, 1]."""
        epsilon: float | None = 0.1
        """Width of the mining band, >= 0; `none` turns mining off."""
        average: Literal["all", "active"] = "all"
        """Which anchors the value is the mean of: `all`, or those for which mining leaves a pair (`active`)."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, above=0)
            check_range("beta", self.beta, above=0)
            check_range("base", self.base, least=-1, most=1)
            check_range("epsilon", self.epsilon, least=0)

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        o = self.options
        if o.epsilon is not None and similarities.shape[1]:
            far = torch.finfo(similarities.dtype).max
            lowest_positive = similarities.masked_fill(~positive, far).amin(1, keepdim=True)  # [A, 1]
            highest_negative = similarities.masked_fill(~negative, -far).amax(1, keepdim=True)
            positive = positive & (similarities - o.epsilon < highest_negative)
            negative = negative & (similarities > lowest_positive - o.epsilon)
        pull = masked_logsumexp(-o.alpha * (similarities - o.base), positive, plus_one=True) / o.alpha
        push = masked_logsumexp(o.beta * (similarities - o.base), negative, plus_one=True) / o.beta
        values = (pull + push)[None]  # [1, A]
        return self.complete(Rows(values, torch.ones_like(values)), None, None)

    @property
    def completes(self) -> bool:  # type: ignore[override]
        return self.options.average == "active"

    def complete(self, rows: Rows, comparison: Comparison | None, context: Any) -> Rows:
        return Rows(rows.values, (rows.values > 0).to(rows.counts)) if self.completes else rows

    def functor_call(self) -> FunctorCall:
        o = self.options
        return FunctorCall("ms", (o.alpha, o.beta, o.base, 1e9 if o.epsilon is None else o.epsilon))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [MultiSimilarity]
