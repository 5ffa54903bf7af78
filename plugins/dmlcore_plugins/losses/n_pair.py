"""Multi-class N-pair loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import dmlcore
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows
from dmlcore_plugins.losses.nt_xent import positives_against_negatives


class NPair(PairLoss):
    """`log(1 + sum_n exp(x_a . x_n - x_a . x_p))` on raw dot products, mean over all pairs of anchor and positive.

    Every anchor and positive of the batch is compared with all negatives of the anchor, so the value does not depend on the
    order of the batch. With one anchor per class as embeddings and one positive per class as references this is exactly the
    paper's loss. On unit vectors it is `nt_xent` with temperature 1.

    Deviation: the paper's and pytorch-metric-learning's loss on a plain batch takes one pair per class, which the library
    finds by the order of the batch, and only the other pairs' positives as negatives; here all of them count. That library
    also normalises its "dot products" by default. The paper's penalty on the norms is the regulariser `l2_norm`.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016, section 3.2.
    """

    name = "n_pair"
    title = "Multi-class N-pair loss"
    paper = "Sohn, NIPS 2016"
    aliases = ("NPairsLoss", "NPairLoss", "npairs")
    normalise = (False, False)
    needs_norms = True

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `n_pair`."""

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        return positives_against_negatives(similarities, similarities, positive, negative)

    def functor_call(self) -> FunctorCall:
        return FunctorCall("n_pair", (1.0, 1.0, 0.0))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [NPair]
