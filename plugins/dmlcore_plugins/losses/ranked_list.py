"""Ranked list loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.kernels import FunctorCall
from dmlcore.losses import PairLoss, PairOptions, Rows, distances


class RankedList(PairLoss):
    """`(1 - imbalance) mean_p(h_p, Tp) + imbalance mean_n(h_n, Tn)`, mean over all anchors, with the hinges
    `h_p = relu(d_p - (alpha - margin))` and `h_n = relu(alpha - d_n)`, `d` the Euclidean distance of unit vectors, and
    `mean(h, T) = sum(w h) / (sum(w) + 1e-5 N)`, `w = exp(T h)` where `h > 0` and 0 elsewhere, N the number of references.

    Gradients flow through the weights. The small number in the divisor is pytorch-metric-learning's. Deviation from that
    library: a negative at distance exactly 0 counts like any other, and the loss takes references.

    Source: Wang, Hua, Kodirov, Hu, Garnier, Robertson, "Ranked List Loss for Deep Metric Learning", CVPR 2019, eq. 3-10;
    defaults: the paper's RLL-Simpler.
    """

    name = "ranked_list"
    title = "Ranked list loss"
    paper = "Wang et al., CVPR 2019"
    aliases = ("RankedListLoss", "ranked_list_loss")

    @dataclass(frozen=True, kw_only=True)
    class Options(PairOptions):
        """Options of `ranked_list`."""

        margin: float = 0.4
        """Width of the gap between positives and negatives, in [0, 2]."""
        Tn: float = 10.0
        """How much more a negative counts that is nearer, in [0, 60]; 0: all the same."""
        imbalance: float = 0.5
        """Share of the negatives, in [0, 1]."""
        alpha: float | None = None
        """Distance below which a negative is too near, in (0, 2]; `none`: 1 + margin / 2."""
        Tp: float = 0.0
        """How much more a positive counts that is farther, in [0, 60]; 0: all the same."""

        def __post_init__(self) -> None:
            check_range("margin", self.margin, least=0, most=2)
            check_range("Tn", self.Tn, least=0, most=60)
            check_range("imbalance", self.imbalance, least=0, most=1)
            check_range("alpha", self.alpha, above=0, most=2)
            check_range("Tp", self.Tp, least=0, most=60)

    @property
    def _bounds(self) -> tuple[float, float]:
        """The distances below which a negative and above which a positive costs something."""
        o = self.options
        alpha = 1 + o.margin / 2 if o.alpha is None else o.alpha
        return alpha, alpha - o.margin

    @staticmethod
    def _mean(hinges: Tensor, sharpness: float, counted: Tensor, guard: Tensor) -> Tensor:
        """`[A]` weighted means; the shift of the exponents divides out."""
        counted = counted & (hinges > 0)
        exponents = sharpness * torch.where(counted, hinges, torch.zeros_like(hinges))
        shift = exponents.detach().amax(1, keepdim=True)  # [A, 1]
        weights = torch.where(counted, torch.exp(exponents - shift), torch.zeros_like(exponents))
        return (weights * hinges).sum(1) / (weights.sum(1) + guard * torch.exp(-shift[:, 0]))

    def row_values(self, similarities: Tensor, positive: Tensor, negative: Tensor) -> Rows:
        o, (alpha, boundary) = self.options, self._bounds
        d = distances(similarities)
        guard = 1e-5 * (1 + (positive | negative).sum(1).to(d))  # [A]: with the anchor itself
        if d.shape[1] == 0:
            return Rows(d.sum(1)[None], torch.ones_like(guard)[None])
        pull = self._mean(d - boundary, o.Tp, positive, guard)
        push = self._mean(alpha - d, o.Tn, negative, guard)
        values = ((1 - o.imbalance) * pull + o.imbalance * push)[None]  # [1, A]
        return Rows(values, torch.ones_like(values))

    def functor_call(self) -> FunctorCall:
        o = self.options
        return FunctorCall("ranked_list", (*self._bounds, o.imbalance, o.Tp, o.Tn))


@dmlcore.hookimpl
def dmlcore_losses() -> list[type]:
    return [RankedList]
