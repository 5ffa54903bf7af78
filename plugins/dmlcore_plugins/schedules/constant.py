"""The same rate all the time."""

from __future__ import annotations

import dmlcore
from dmlcore.training import Schedule


class Constant(Schedule):
    """The highest rate from the end of the warm-up to the end of the run."""

    name = "constant"

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return 1.0


@dmlcore.hookimpl
def dmlcore_schedules() -> list[type]:
    return [Constant]
