"""Up and down once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Schedule


class OneCycle(Schedule):
    """Rises from `start` to the highest rate and falls to `end`, each as half a cosine. The rise takes the place of `warmup`.

    Source: Smith, Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018. The
    halves are cosines instead of lines, as in PyTorch, and the momentum stays.
    """

    name = "one_cycle"
    rises_itself = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `one_cycle`."""

        rise: float = 0.3
        """Share of the run that it rises, in (0, 1)."""
        start: float = 0.04
        """Factor at the first step, in [0, 1]."""
        end: float = 4e-6
        """Factor at the last step, in [0, 1]."""

        def __post_init__(self) -> None:
            check_range("rise", self.rise, above=0, below=1)
            check_range("start", self.start, least=0, most=1)
            check_range("end", self.end, least=0, most=1)

    def factor(self, step: int, steps: int, warmup: int) -> float:
        options = self.options
        top = max(options.rise * steps - 1, 0.0)  # the step of the highest rate, as PyTorch has it
        if step <= top:
            return _between(options.start, 1.0, step / top if top else 1.0)
        return _between(1.0, options.end, (step - top) / (steps - 1 - top))


def _between(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@dmlcore.hookimpl
def dmlcore_schedules() -> list[type]:
    return [OneCycle]
