"""Down when validation stops to rise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dmlcore
from dmlcore.config import check_range
from dmlcore.training import Schedule


class Plateau(Schedule):
    """Is multiplied by `gamma` when more than `patience` evaluations in a row were no better than the best before them. An
    evaluation is better where its MAP@R on the validation part is higher by more than `threshold`.
    """

    name = "plateau"
    needs_validation = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `plateau`."""

        gamma: float = 0.1
        """Factor on the rate at each fall, in (0, 1)."""
        patience: int = 3
        """Evaluations in a row that may be no better."""
        threshold: float = 0.0
        """By how much of MAP@R an evaluation must be higher, >= 0."""
        floor: float = 0.0
        """Lowest factor, in [0, 1]."""

        def __post_init__(self) -> None:
            check_range("gamma", self.gamma, above=0, below=1)
            check_range("patience", self.patience, least=0)
            check_range("threshold", self.threshold, least=0)
            check_range("floor", self.floor, least=0, most=1)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.present, self.best, self.waited = 1.0, -math.inf, 0

    def factor(self, step: int, steps: int, warmup: int) -> float:
        return self.present

    def evaluated(self, score: float) -> None:
        options = self.options
        if score > self.best + options.threshold:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited > options.patience:
            self.present, self.waited = max(self.present * options.gamma, options.floor), 0

    def state_dict(self) -> dict[str, Any]:
        return {"present": self.present, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.present, self.best, self.waited = float(state["present"]), float(state["best"]), int(state["waited"])


@dmlcore.hookimpl
def dmlcore_schedules() -> list[type]:
    return [Plateau]
