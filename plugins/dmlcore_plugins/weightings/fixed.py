"""Fixed weights."""

from __future__ import annotations

from torch import Tensor

import dmlcore
from dmlcore.ensemble import Weighting


class Fixed(Weighting):
    """`sum_i w_i l_i` with the weights as given; nothing is learnt. The control every other weighting is compared with."""

    name = "fixed"
    title = "Fixed weights"

    def forward(self, terms: Tensor) -> Tensor:
        return self.initial.to(terms).dot(terms)

    @property
    def weights(self) -> Tensor:
        return self.initial.clone()


@dmlcore.hookimpl
def dmlcore_weightings() -> list[type]:
    return [Fixed]
