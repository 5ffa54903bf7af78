"""Learnt weights that balance gradient norms and training rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import gradient_only, project_simplex


class GradNorm(Weighting):
    """`sum_i w_i l_i` with learnt `w` that minimises `sum_i |w_i n_i - p_i G r_i^alpha|`.

    `n_i` is the norm of the gradient of loss i at the embedding, `G = sum_i w_i n_i`, and `r_i` the training rate: `l_i` over
    its first value that is not 0, divided by the `p`-weighted mean of these. A loss that has fallen less than the others is
    to have the longer gradient. The right-hand side is constant for the gradient. After every step the weights are scaled to
    sum 1 and no weight is below `floor p_i`. A loss with initial weight 0 stays out.

    Balanced weights undo the scales of the losses; how fast they get there depends on scales and learning rate, since the
    gradient of `w_i` is `n_i` or `-n_i`, and a scale that asks for less than the floor is not undone.

    `weights` are `w_i`; `importances` are `p_i`, the weights asked for scaled to sum 1, since `w_i` tells the scale of a loss
    and not its worth.

    Source: Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks", ICML 2018, eqs. 1 and 2 and algorithm 1. Deviations: the norms are taken at the embedding instead of
    at the last shared layer's weights; the weights sum to 1 instead of L; prior and floor; the first value is one batch's.
    """

    name = "grad_norm"
    title = "GradNorm"
    paper = "Chen et al., ICML 2018"
    aliases = ("GradNorm",)
    reads_gradients = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `grad_norm`."""

        alpha: float = 1.5
        """How strongly slow losses are pulled, >= 0; 0 asks for equal norms."""
        floor: float = 0.01
        """Smallest weight of a loss as a share of its initial one, in (0, 1)."""

        def __post_init__(self) -> None:
            check_range("alpha", self.alpha, least=0)
            check_range("floor", self.floor, above=0, below=1)

    first: Tensor
    norms: Tensor
    rates: Tensor

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.shares = nn.Parameter(self.prior.clone())
        self.register_buffer("first", torch.zeros(len(initial)))
        self.register_buffer("norms", torch.zeros(len(initial)))
        self.register_buffer("rates", torch.ones(len(initial)))

    @torch.no_grad()
    def observe(self, gram: Tensor, terms: Tensor) -> None:
        if not self.training:
            return
        terms = terms.to(self.first)
        norms = gram.diagonal().clamp_min(0).sqrt().to(self.norms)
        finite = torch.isfinite(norms).all() & torch.isfinite(terms).all()
        self.norms.copy_(torch.where(finite, norms, self.norms))
        self.first.copy_(torch.where((self.first > 0) | ~finite, self.first, terms.clamp_min(0)))
        fallen = torch.where(self.first > 0, terms.clamp_min(0) / torch.where(self.first > 0, self.first, 1), 1)
        mean = (self.prior * fallen).sum()
        rates = torch.where(mean > 0, fallen / torch.where(mean > 0, mean, 1), 1)
        self.rates.copy_(torch.where(finite, rates, self.rates))

    def forward(self, terms: Tensor) -> Tensor:
        weights = self.weights
        if self.training:
            with torch.no_grad():
                self.shares.copy_(weights)
        lengths = self.shares * self.norms.clone()  # [L]
        targets = self.prior * lengths.detach().sum() * self.rates**self.options.alpha
        objective = (lengths - targets).abs().sum()
        return (weights.to(terms) * terms).sum() + gradient_only(objective).to(terms)

    @property
    def weights(self) -> Tensor:
        floor = self.options.floor * self.prior
        shares = torch.maximum(self.shares.detach(), floor)
        return torch.where(self.prior > 0, project_simplex(shares / shares.sum(), floor), 0)

    @property
    def importances(self) -> Tensor:
        return self.prior


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [GradNorm]
