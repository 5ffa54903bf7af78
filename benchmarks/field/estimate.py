"""How long a comparison takes, before it begins: a few steps and evaluations of each arm are timed on the data and the device,
and multiplied. An estimate, not a measurement.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.field.arms import Arm
from benchmarks.field.stages import Budget, check
from dmlcore.data import RecordedSplit
from dmlcore.protocols import crossing
from dmlcore.protocols.tuning.folds import folds_of
from dmlcore.training import RunConfig, train
from dmlcore.training.loggers import Logger

STEPS = 8  # that are timed; the first ones are slower and do not count
WARM = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of the parts of a run.

    Attributes:
        start: until the first step, with the evaluation before it.
        step: of training.
        evaluation: of the validation classes.
        end: the test classes and the baselines.
        joined: the test classes again, side by side with those of other folds.
    """

    start: float
    step: float
    evaluation: float
    end: float
    joined: float


@dataclass(frozen=True)
class Cost:
    """Of an arm.

    Attributes:
        search: seconds of the search, one process.
        repeats: seconds of the repeats, one process.
    """

    search: float
    repeats: float

    @property
    def hours(self) -> float:
        return (self.search + self.repeats) / 3600


@dataclass
class _Clock(Logger):
    """Times the events of a run."""

    options: Any = None
    steps: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    last: float = 0.0

    def started(self, run: Any) -> None:
        self.last = time.perf_counter()

    def step_ended(self, run: Any, record: dict[str, Any]) -> None:
        self.steps.append(self._lap())

    def evaluated(self, run: Any, record: dict[str, Any]) -> None:
        self.evaluations.append(self._lap())

    def _lap(self) -> float:
        now, before = time.perf_counter(), self.last
        self.last = now
        return now - before


def cost(timing: Timing, budget: Budget, steps: int, evaluations: int) -> Cost:
    """Seconds of an arm, as many as it takes when no training ends early.

    Args:
        timing: of the arm.
        budget: of every arm.
        steps: of a training.
        evaluations: of a training, apart from that before the first step.
    """
    training = timing.start + steps * timing.step + evaluations * timing.evaluation
    return Cost(
        budget.trials * budget.folds * training,
        budget.seeds * budget.folds * (training + timing.end + timing.joined),
    )


def measure(config: RunConfig, split: RecordedSplit) -> Timing:
    """Time a short run of an arm on one fold.

    Args:
        config: of the arm.
        split: of the fold.
    """
    values = {**config.as_dict(), "steps": STEPS, "epochs": "none", "eval_every": STEPS, "patience": "none", "log_every": STEPS}
    short, clock = RunConfig.create(**values), _Clock()
    with tempfile.TemporaryDirectory(prefix="dmlcore-estimate-") as folder:
        place = Path(folder) / "seed-0" / "fold-1"
        began = time.perf_counter()
        train(short, out=place, recorded=split, loggers=[clock])
        ended = time.perf_counter()
        crossing.measure_joined({"seed": 0, "folds": 1}, Path(folder), folder)
        joined = time.perf_counter() - ended
    counted = clock.steps[min(WARM, len(clock.steps) - 1) :]
    evaluation = clock.evaluations[-1]
    passed = sum(clock.steps) + sum(clock.evaluations[1:])
    end = ended - clock.last
    return Timing(ended - began - passed - end, statistics.median(counted), evaluation, end, joined)


def run(arms: Sequence[Arm], budget: Budget, processes: int, tell: Callable[[str], None] = print) -> dict[str, Cost]:
    """Time every arm and say what the comparison takes.

    Args:
        arms: of the comparison.
        budget: of every arm.
        processes: at a time, in the comparison.
        tell: receives the lines of the table.
    """
    plan, record = check(arms, budget)
    fold = folds_of(RecordedSplit.of_json(record), budget.folds, plan.seed)[0]
    tell(
        f"an estimate: {budget.trials} trials and {budget.seeds} repeats, each of {budget.folds} folds of {plan.steps} steps"
        f" and {plan.evaluations} evaluations"
    )
    costs = {}
    for arm in arms:
        timing = measure(arm.config, fold)
        costs[arm.name] = cost(timing, budget, plan.steps, plan.evaluations)
        tell(
            f"{arm.name:24} {timing.step:9.4f} s a step {timing.evaluation:8.2f} s an evaluation"
            f" {costs[arm.name].search / 3600:9.2f} h search {costs[arm.name].repeats / 3600:9.2f} h repeats"
            f" {costs[arm.name].hours:9.2f} h in all"
        )
    hours = sum(each.hours for each in costs.values())
    tell(
        f"all arms: {hours:.3g} hours of one process, {hours / processes:.3g} with {processes} at a time if each is as fast."
        f" Less where trainings end early"
    )
    return costs
