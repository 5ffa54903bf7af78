"""Half a cosine down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Schedule


class Cosine(Schedule):
    """Falls as half a cosine from the end of the warm-up to the end of the run:
    `floor + (1 - floor) * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2`.

    Source: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5, without restarts.
    """

    name = "cosine"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `cosine`."""

        floor: float = 0.01
        """Factor at the end, in [0, 1]."""

        def __post_init__(self) -> None:
            check_range("floor", self.floor, least=0, most=1)

    def factor(self, step: int, steps: int, warmup: int) -> float:
        if step < warmup:
            return 1.0
        floor, progress = self.options.floor, min((step - warmup) / max(steps - warmup, 1), 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


@dmlcore.hookimpl
def dmlcore_schedules() -> list[type]:
    return [Cosine]
