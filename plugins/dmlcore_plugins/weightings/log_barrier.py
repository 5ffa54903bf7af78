"""Learnt weights that sum to 1, kept inside by a logarithmic barrier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser, gradient_only


class LogBarrier(Weighting):
    """`sum_i w_i (lbar / lbar_i) l_i` with learnt `w` that minimises `sum_i w_i l_i / lbar_i - tau sum_i p_i log w_i`.

    `p` are the weights asked for, scaled to sum 1. The weights are learnt, `w = softmax(log p + v)` with free numbers `v`;
    their stationary point `w_i = tau p_i / (l_i / lbar_i + nu)`, with the `nu` that makes the sum 1, is inside the simplex:
    equal losses keep `w = p`, and a loss that has fallen more than the others gets more. The mean of `v` is taken out and `v`
    is kept in `[-bound, bound]`, so no weight is below `exp(-2 bound) p_i`. A loss with initial weight 0 stays out.

    Losses count in units of their own mean `lbar_i` over all batches so far, so the weights do not depend on their scales.
    `weights` are `w_i lbar / lbar_i`; `importances` are `w_i`.

    Source: the interior-point barrier (Boyd and Vandenberghe, "Convex Optimization", 2004, sec. 11.2) on the objective of
    Zabihzadeh, Alitbi, Mousavirad, MTAP 2023 (arXiv 2107.01130); the prior in the barrier and the bounds are ours.
    """

    name = "log_barrier"
    title = "Learnt weights inside a logarithmic barrier"
    paper = "after Zabihzadeh et al., MTAP 2023"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `log_barrier`."""

        tau: float = 1.0
        """Strength of the barrier, > 0: large keeps the initial weights, small follows the losses."""
        bound: float = 3.0
        """Largest absolute `v`, > 0: no weight falls below exp(-2 bound) times its initial share."""

        def __post_init__(self) -> None:
            check_range("tau", self.tau, above=0)
            check_range("bound", self.bound, above=0, most=20)

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.logits = nn.Parameter(torch.zeros(len(initial)))
        self.equaliser = Equaliser(len(initial))

    def _bounded(self) -> Tensor:
        free, bound = self.logits.detach(), self.options.bound
        return (free - free.mean()).clamp(-bound, bound)

    def forward(self, terms: Tensor) -> Tensor:
        prior = self.prior
        if self.training:
            with torch.no_grad():
                self.logits.copy_(self._bounded())
            self.equaliser.update(terms)
        logs = torch.log_softmax(prior.log() + self.logits, 0)  # [L], -inf where the prior is 0
        barrier = (prior * torch.where(prior > 0, logs, 0)).sum()
        shares = logs.exp()
        objective = (shares * self.equaliser.relative(terms)).sum() - self.options.tau * barrier
        weights = shares.detach() * self.equaliser.factors
        return (weights.to(terms) * terms).sum() + gradient_only(objective).to(terms)

    @property
    def weights(self) -> Tensor:
        return self.importances * self.equaliser.factors

    @property
    def importances(self) -> Tensor:
        return torch.softmax(self.prior.log() + self._bounded(), 0)


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [LogBarrier]
