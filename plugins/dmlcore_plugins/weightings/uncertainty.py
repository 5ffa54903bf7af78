"""Weights from learnt uncertainties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting


class Uncertainty(Weighting):
    """`sum_i w0_i (exp(-v_i) l_i + v_i)` with learnt log-variances `v_i`, kept in `[-bound, bound]`.

    Stationary where `exp(-v_i) = 1 / l_i`, so every loss contributes alike whatever its scale. A loss that reaches zero, as
    hinges do, would send its weight to infinity: after every step the log-variances are put back into the bounds, so a weight
    stays within `exp(+-bound)` times its initial weight and recovers at once when the loss comes back. A member whose initial
    weight is 0 stays out.

    `weights` are `w0_i exp(-v_i)`; `importances` are `w0_i / sum w0`, since the factors tell the scale of a loss and not its
    worth.

    Source: Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, eq. 10, without the
    factor 1/2 of regression tasks; the bounds are ours.
    """

    name = "uncertainty"
    title = "Uncertainty weighting"
    paper = "Kendall et al., CVPR 2018"
    aliases = ("UW", "uncertainty_weighting")

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `uncertainty`."""

        bound: float = 3.0
        """Largest absolute log-variance, > 0: weights stay within exp(+-bound)."""

        def __post_init__(self) -> None:
            check_range("bound", self.bound, above=0, most=20)

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        self.log_variances = nn.Parameter(torch.zeros(len(initial)))

    def _bounded(self) -> Tensor:
        with torch.no_grad():
            self.log_variances.clamp_(-self.options.bound, self.options.bound)
        return self.log_variances

    def forward(self, terms: Tensor) -> Tensor:
        v, prior = self._bounded().to(terms), self.initial.to(terms)
        return (prior * (torch.exp(-v) * terms + v)).sum()

    @property
    def weights(self) -> Tensor:
        bound = self.options.bound
        return self.initial * torch.exp(-self.log_variances.detach().clamp(-bound, bound))

    @property
    def importances(self) -> Tensor:
        return self.prior

    @property
    def largest(self) -> float:
        """The factor no weight can exceed, relative to its initial weight."""
        return math.exp(self.options.bound)


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [Uncertainty]
