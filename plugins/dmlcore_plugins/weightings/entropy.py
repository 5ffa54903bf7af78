"""Weights in closed form: a softmax of the losses in units of their means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser
from dmlcore.ensemble.weighting import RunningMeans


class Entropy(Weighting):
    """`sum_i w_i (lbar / lbar_i) l_i` with `w = (1 - floor) softmax(log p - r / tau) + floor p`.

    The weights are given in closed form; nothing is learnt by an optimiser. `r_i` is the mean of loss i over about the last
    `window` batches in units of its mean over all batches so far, and `p` are the weights asked for, scaled to sum 1. The
    softmax is the minimum of `sum_i w_i r_i + tau KL(w || p)` on the simplex: a loss that has fallen more than the others gets
    more. No weight is below `floor p_i`. A loss with initial weight 0 stays out. The weights do not depend on the scale of
    any loss.

    `weights` are `w_i lbar / lbar_i`; `importances` are `w_i`.

    Source: the softmax as minimum under an entropy (the Gibbs variational principle), on the objective of Zabihzadeh, Alitbi,
    Mousavirad, MTAP 2023 (arXiv 2107.01130). Window, prior and floor are ours.
    """

    name = "entropy"
    title = "Closed-form weights under an entropy"
    paper = "after Zabihzadeh et al., MTAP 2023"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `entropy`."""

        tau: float = 1.0
        """Strength of the regularisation, > 0: large keeps the initial weights, small follows the losses."""
        window: int = 10
        """Batches over which a loss is averaged before it moves the weights, >= 1; 1 is the current batch alone."""
        floor: float = 0.05
        """Share of its initial weight that a loss keeps in any case, in [0, 1)."""

        def __post_init__(self) -> None:
            check_range("tau", self.tau, above=0)
            check_range("window", self.window, least=1)
            check_range("floor", self.floor, least=0, below=1)

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.equaliser = Equaliser(len(initial))
        self.recent = RunningMeans(len(initial), self.options.window)

    def forward(self, terms: Tensor) -> Tensor:
        if self.training:
            self.equaliser.update(terms)
            self.recent.update(terms)
        return (self.weights.to(terms) * terms).sum()

    @property
    def weights(self) -> Tensor:
        return self.importances * self.equaliser.factors

    @property
    def importances(self) -> Tensor:
        relative = self.equaliser.relative(self.recent.mean)  # [L]
        shares = torch.softmax(self.prior.log() - relative / self.options.tau, 0)
        return (1 - self.options.floor) * shares + self.options.floor * self.prior


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [Entropy]
