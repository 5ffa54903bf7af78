"""Down by a factor at some steps."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import dmlcore
from dmlcore.config import check_range
from dmlcore.errors import ConfigError
from dmlcore.training import Schedule


class MultiStep(Schedule):
    """Is multiplied by `gamma` at each milestone, or every so many steps, as most publications of metric learning do it. Steps
    are counted from the beginning of the run.
    """

    name = "multi_step"

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `multi_step`."""

        milestones: tuple[int, ...] = ()
        """Steps at which the rate falls, in rising order."""
        every: int | None = None
        """Steps from one fall to the next, instead of `milestones` (default: a third of the run)."""
        gamma: float = 0.1
        """Factor on the rate at each fall, in (0, 1]."""

        def __post_init__(self) -> None:
            for milestone in self.milestones:
                check_range("milestones", milestone, least=1)
            if list(self.milestones) != sorted(set(self.milestones)):
                raise ConfigError(f"milestones are {self.milestones}, but must rise")
            check_range("every", self.every, least=1)
            check_range("gamma", self.gamma, above=0, most=1)
            if self.milestones and self.every is not None:
                raise ConfigError("milestones and every are both given, but say the same in different ways")

    def factor(self, step: int, steps: int, warmup: int) -> float:
        options = self.options
        if options.milestones:
            return options.gamma ** bisect.bisect_right(options.milestones, step)
        return options.gamma ** (step // (options.every or max(1, -(-steps // 3))))

    def unreached(self, steps: int) -> str:
        options = self.options
        beyond = [str(fall) for fall in (*options.milestones, *filter(None, [options.every])) if fall >= steps]
        name = "milestones" if options.milestones else "every"
        return f"{name} = {', '.join(beyond)} lies beyond the {steps} steps: the rate does not fall there" if beyond else ""


@dmlcore.hookimpl
def dmlcore_schedules() -> list[type]:
    return [MultiStep]
