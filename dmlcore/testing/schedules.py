"""The contract of schedules, as checks."""

from __future__ import annotations

import json
import math
from typing import Any

from dmlcore.config import build_options
from dmlcore.testing.report import Report
from dmlcore.training import Schedule
from dmlcore.training.schedule import factor

LENGTHS = (1, 2, 7, 100)  # steps of a run
WARMUPS = (0, 10)
SCORES = (0.2, 0.3, 0.3, 0.25, 0.3, 0.2, 0.1, 0.4, 0.1)


def check_schedule(component: type[Schedule], options: dict[str, Any], report: Report) -> None:
    """Factors that are numbers, that depend on the step only, and a state from which it goes on exactly."""

    def new() -> Schedule:
        return component(build_options(component.Options, options, component.name))

    def factors(schedule: Schedule, steps: int, warmup: int) -> list[float]:
        return [factor(schedule, step, steps, warmup) for step in range(steps)]

    def gives_numbers() -> str | None:
        for steps in LENGTHS:
            for warmup in WARMUPS:
                for step, value in enumerate(factors(new(), steps, warmup)):
                    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                        return f"factor({step}, {steps}, {warmup}) must be a finite number >= 0, got {value}"
        return None

    def depends_on_step() -> str | None:
        schedule = new()
        forwards = factors(schedule, 100, 10)
        backwards = [factor(schedule, step, 100, 10) for step in reversed(range(100))]
        if forwards != backwards[::-1] or forwards != factors(new(), 100, 10):
            return "the factor of a step must not depend on which steps were asked for before"
        return None

    def rises() -> str | None:
        return None if max(factors(new(), 100, 10)) > 0 else "the factor is 0 at every step, so nothing would be trained"

    def resumes() -> str | None:
        schedule = new()
        for score in SCORES[:5]:
            schedule.evaluated(score)
        again = new()
        again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        for score in SCORES[5:]:
            schedule.evaluated(score)
            again.evaluated(score)
            if factors(schedule, 100, 10) != factors(again, 100, 10):
                return "with the state of another one it does not go on as that does"
        return None

    report.check("factor: finite and not negative", gives_numbers)
    report.check("factor: depends on the step only", depends_on_step)
    report.check("factor: above 0 somewhere", rises)
    report.check("state: goes on exactly", resumes)
