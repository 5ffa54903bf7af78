"""Multi-class N-pair loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.kernels import FunctorCall
from dmlcore.losses import Comparison, PairLoss, Rows
from dmlcore_plugins.losses.nt_xent import PairedOptions, first_pairs, positives_against_negatives


class NPair(PairLoss):
    """`log(1 + sum_n exp(x_a . x_n - x_a . x_p))` on raw dot products, mean over all pairs of anchor and positive.

    Every anchor and positive of the batch is compared with all negatives of the anchor, so the value does not depend on the
    order of the batch. On unit vectors it is `nt_xent` with temperature 1.

    `pairs = "one_per_class"` is the paper's loss: the first sample of each class is an anchor, the second its positive, and the
    other classes' second samples are its negatives, in the order of the batch. Samplers draw that order at random. A class with
    one sample takes no part, nor do a third and further samples of a class.

    Deviation: without that option all pairs count, with all negatives. pytorch-metric-learning takes one pair per class, and
    normalises its "dot products" by default. The paper's penalty on the norms is the regulariser `l2_norm`.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, section 3.2.
    """

    name = "n_pair"
    title = "Multi-class N-pair loss"
    paper = "Sohn, NIPS 2016"
    aliases = ("NPairsLoss", "NPairLoss", "npairs")
    normalise = (False, False)
    needs_norms = True
    reshapes = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairedOptions):
        """Options of `n_pair`."""

    def reshaped(self, comparison: Comparison) -> Comparison:
        return first_pairs(comparison) if self.options.pairs == "one_per_class" else comparison

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        return positives_against_negatives(similarities, similarities, positive, negative)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("n_pair", (1.0, 1.0, 0.0))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NPair]
