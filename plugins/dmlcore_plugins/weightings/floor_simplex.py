"""Learnt weights above a floor that sum to 1 exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dmlcore
from dmlcore.config import check_range
from dmlcore.ensemble import Weighting
from dmlcore.ensemble.shares import Equaliser, floored_shares, gradient_only, project_simplex


class FloorSimplex(Weighting):
    """`sum_i w_i (lbar / lbar_i) l_i` with learnt `w_i` on the simplex `{w >= floor, sum w = 1}`.

    `floor_square_penalty` with an exact projection instead of the penalty and the squares: after every step of the optimiser
    the weights are replaced by the nearest point of the simplex. The objective is linear in the weights, so its minimum is a
    corner: the loss that has fallen most takes what the others' floors leave. With a large learning rate it gets there.

    The weights see the gradient `l_i / lbar_i` less its mean. For gradient descent that is the same step, since the projection
    removes what all weights have in common; Adam, which scales each weight by its own gradients, would drown in it. Without
    the factor `lbar` the weights do not depend on the scale of any loss.

    `weights` are `w_i lbar / lbar_i`; `importances` are `w_i`.

    Source: the objective of Zabihzadeh, Alitbi, Mousavirad, MTAP 2023 (arXiv 2107.01130); projection and gradient are ours.

    Raises:
        ConfigError: an initial weight, scaled to sum 1, is not above the floor.
    """

    name = "floor_simplex"
    title = "Learnt weights above a floor, on the simplex"
    paper = "after Zabihzadeh et al., MTAP 2023"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `floor_simplex`."""

        floor: float | None = None
        """Smallest weight, >= 0 and below every initial weight; none: 1 / (4 L) for L losses."""

        def __post_init__(self) -> None:
            check_range("floor", self.floor, least=0, below=1)

    def __init__(self, initial: Tensor, options: Any = None, **options_by_name: Any) -> None:
        super().__init__(initial, options, **options_by_name)
        shares, self.floor = floored_shares(self.prior, self.options.floor)
        self.shares = nn.Parameter(shares)
        self.equaliser = Equaliser(len(initial))

    def forward(self, terms: Tensor) -> Tensor:
        shares = self.importances
        if self.training:
            with torch.no_grad():
                self.shares.copy_(shares)
            self.equaliser.update(terms)
        relative = self.equaliser.relative(terms)  # [L]
        objective = (self.shares * (relative - relative.mean())).sum()
        return ((shares * self.equaliser.factors).to(terms) * terms).sum() + gradient_only(objective).to(terms)

    @property
    def weights(self) -> Tensor:
        return self.importances * self.equaliser.factors

    @property
    def importances(self) -> Tensor:
        return project_simplex(self.shares.detach(), self.floor)


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [FloorSimplex]
