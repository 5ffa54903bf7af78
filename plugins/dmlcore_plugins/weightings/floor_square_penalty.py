"""The published weights of an ensemble of losses: squares above a floor, kept near sum 1 by a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser, floored_shares


class FloorSquarePenalty(Weighting):
    """`sum_i w_i (lbar / lbar_i) l_i + penalty (sum_i w_i - 1)^2` with `w_i = c_i^2 + floor` and learnt `c_i`.

    `lbar_i` is the mean of loss i over all batches so far, the current one included, and `lbar` the mean of these; both are
    constants for the gradient. Initial weights are those asked for, scaled to sum 1: `c_i = sqrt(w_i - floor)`.

    Only the floor keeps a loss in: the sum is linear in the weights, so in the long run the loss that has fallen most takes
    what the others' floors leave. At usual learning rates the weights hardly move, since the penalty fills Adam's second
    moment. The penalty counts in the value returned, and in the gradient norm of the optimiser group of the weights.

    `weights` are `w_i lbar / lbar_i`; `importances` are `w_i / sum w`.

    Source: Zabihzadeh, Alitbi, Mousavirad, "Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning
    Methods", MTAP 2023 (arXiv 2107.01130), eqs. 8 and 11 with penalty 100 eta, eta = 100, after the authors' code. A loss that
    is 0 from the start is not equalised there (it divides by zero); here it keeps the factor 1.

    Raises:
        ConfigError: an initial weight, scaled to sum 1, is not above the floor.
    """

    name = "floor_square_penalty"
    title = "Squared weights above a floor, with a penalty (WEL, WEDL)"
    paper = "Zabihzadeh et al., MTAP 2023"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `floor_square_penalty`."""

        penalty: float = 1e4
        """Strength with which the weights are held near sum 1, >= 0."""
        floor: float | None = None
        """Smallest weight, >= 0 and below every initial weight; none: 1 / (4 L) for L losses."""

        def __post_init__(self) -> None:
            check_range("penalty", self.penalty, least=0)
            check_range("floor", self.floor, least=0, below=1)

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        shares, self.floor = floored_shares(self.prior, self.options.floor)
        self.roots = nn.Parameter((shares - self.floor).sqrt())
        self.equaliser = Equaliser(len(initial))

    def forward(self, terms: Tensor) -> Tensor:
        if self.training:
            self.equaliser.update(terms)
        shares = (self.roots.square() + self.floor).to(terms)  # [L]
        return (shares * self.equaliser.factors.to(terms) * terms).sum() + self.options.penalty * (shares.sum() - 1).square()

    @property
    def shares(self) -> Tensor:
        """`[L]` the learnt `w_i`, detached; their sum is near 1."""
        return self.roots.detach().square() + self.floor

    @property
    def weights(self) -> Tensor:
        return self.shares * self.equaliser.factors

    @property
    def importances(self) -> Tensor:
        return self.shares / self.shares.sum()


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [FloorSquarePenalty]
