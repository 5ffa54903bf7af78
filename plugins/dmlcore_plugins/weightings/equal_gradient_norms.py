"""Every loss's gradient at the embedding scaled to one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.few_numbers import arithmetic
from dmlcore.ensemble.weighting import RunningMeans


class EqualGradientNorms(Weighting):
    """`sum_i p_i (n / n_i) l_i` with `n_i` the norm of the gradient of loss i at the embedding and `n = sum_i p_i n_i`.

    `p` are the weights asked for, scaled to sum 1. Each gradient is brought to unit norm, weighed with `p`, and scaled back by
    the mean norm `n`: the losses pull in proportion to `p` whatever their scales, the step keeps the size of a weighted mean
    of the losses (so learning rates and clipping mean what they mean for one loss), and it still shrinks as they are solved.
    The direction at the embedding does not depend on the scale of any loss. Proxies and other numbers a loss owns see the
    same factor as its term. Nothing is learnt.

    A gradient that is nearly 0, as of a hinge with one active triplet left, is not scaled up without end: norms below
    `floor` times their own running mean count as that. A loss without any gradient so far keeps the factor `p_i`.

    With a `spread` above 1, gradients between `n / spread` and `n spread` keep their lengths. Only losses that would drown the
    others, or drown among them, are brought to these bounds.

    `weights` are `p_i n / n_i`; `importances` are `p_i`.

    Source: gradient normalisation as in Chen et al., "GradNorm", ICML 2018, solved exactly at every step at the embedding;
    the floor and the scaling back are ours.
    """

    name = "equal_gradient_norms"
    title = "Gradients of equal norm"
    paper = "after Chen et al., ICML 2018"
    reads_gradients = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `equal_gradient_norms`."""

        floor: float = 0.1
        """Smallest norm that is scaled up to the others', as a share of its own running mean, in [0, 1]; 0: any."""
        spread: float = 1.0
        """How many times longer or shorter than the mean a gradient may stay, >= 1; 1: all get one length."""
        horizon: int = 100
        """Steps over which that running mean forgets, >= 1."""

        def __post_init__(self) -> None:
            check_range("floor", self.floor, least=0, most=1)
            check_range("spread", self.spread, least=1)
            check_range("horizon", self.horizon, least=1)

    factors: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.norms = RunningMeans(len(initial), self.options.horizon)
        self.register_buffer("factors", self.prior.clone())

    @torch.no_grad()
    def observe(self, gram: Tensor, terms: Tensor) -> None:
        if not self.training:
            return
        norms = gram.diagonal().clamp_min(0).sqrt().to(self.factors)  # [L]
        self.norms.update(norms)
        by, (norms, mean, initial, factors) = arithmetic(norms, self.norms.mean, self.initial, self.factors)
        with np.errstate(all="ignore"):
            norms = by.at_least(norms, by.number(self.options.floor) * mean)
            prior = initial / by.total(initial)
            pulling = (norms > 0) & (prior > 0)
            length = by.total(prior * norms) / by.total(prior * pulling)
            spread = by.number(self.options.spread)
            wanted = by.at_most(by.at_least(norms, length / spread), length * spread)
            changed = prior * by.where(pulling, wanted / norms, by.number(1))
            factors[...] = by.where(by.isfinite(changed).all(), changed, factors)

    def forward(self, terms: Tensor) -> Tensor:
        return (self.weights.to(terms) * terms).sum()

    @property
    def weights(self) -> Tensor:
        return self.factors.clone()

    @property
    def importances(self) -> Tensor:
        return self.prior


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [EqualGradientNorms]
