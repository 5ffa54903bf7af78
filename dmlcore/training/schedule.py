"""What all schedules of the learning rate share: what they are, and the rise at the beginning. The schedules themselves are
plugins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from dmlcore.training.setting_groups.rates import RateSettings


@dataclass(frozen=True)
class NoScheduleOptions:
    """Options of a schedule that has none."""


class Schedule:
    """The learning rate over the steps, as a factor on the highest one.

    Args:
        options: an instance of `Options`.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type] = NoScheduleOptions
    rises_itself: ClassVar[bool] = False
    """Whether it has a rise of its own, and `warmup` is not used."""
    needs_validation: ClassVar[bool] = False
    """Whether it goes by evaluations, and so needs a validation part."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = self.Options() if options is None else options

    def factor(self, step: int, steps: int, warmup: int) -> float:
        """The factor of a step, >= 0. It depends on nothing but the arguments and what `evaluated` was told.

        Args:
            step: from 0 to `steps - 1`.
            steps: of the whole run.
            warmup: steps of the rise, which is multiplied with this.
        """
        raise NotImplementedError(f"the schedule '{self.name}' must write factor()")

    def unreached(self, steps: int) -> str:
        """What of it a run of so many steps never comes to, in a sentence that warns; empty: nothing."""
        return ""

    def evaluated(self, score: float) -> None:
        """Hear of the MAP@R of an evaluation on the validation part."""

    def state_dict(self) -> dict[str, Any]:
        """What `evaluated` has changed, as numbers, texts, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""


def factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """Factor on the learning rate at a step: a straight line up, times the schedule.

        min(1, (step + 1) / warmup) * schedule.factor(step, steps, warmup)

    Args:
        schedule: what follows.
        step: from 0 to steps - 1.
        steps: steps of the whole run.
        warmup: steps of the line up; at most a fifth of `steps` is used.
    """
    warmup = 0 if schedule.rises_itself else min(warmup, steps // 5)
    return min(1.0, (step + 1) / warmup if warmup else 1.0) * schedule.factor(step, steps, warmup)


def role_factors(step: int, rates: RateSettings) -> dict[str, float]:
    """Factors on the learning rates of roles beside that of all: straight lines up, that of the trunk from the end of `freeze`.
    Roles that do not rise on their own are left out."""
    warmups = {
        "trunk": rates.trunk_warmup,
        "head": rates.head_warmup,
        "proxies": rates.proxies_warmup,
        "classifier": rates.proxies_warmup if rates.classifier_warmup is None else rates.classifier_warmup,
        "scalars": rates.scalars_warmup,
        "weights": rates.weights_warmup,
    }
    begins = {"trunk": rates.freeze}
    return {role: min(1.0, max(0, step - begins.get(role, 0) + 1) / warmup) for role, warmup in warmups.items() if warmup}
