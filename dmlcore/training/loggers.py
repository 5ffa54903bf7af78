"""The bases of loggers: receivers of a run's records beside `metrics.jsonl`, which is always written. No torch here."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dmlcore import progress
from dmlcore.config import check_range
from dmlcore.errors import ConfigError

if TYPE_CHECKING:
    from dmlcore.training.run import Run


@dataclass(frozen=True)
class NoOptions:
    """Options of a logger that has none."""


class Logger:
    """Receives what happens in a run; override what is of interest.

    Args:
        options: an instance of `Options`.
    """

    name: ClassVar[str] = ""
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def started(self, run: Run) -> None:
        """Before the first step of this process, after everything is built."""

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        """After an optimiser step, with the record of `metrics.jsonl`."""

    def evaluated(self, run: Run, record: dict[str, Any]) -> None:
        """After an evaluation, with the record of `metrics.jsonl`."""

    def checkpoint_saved(self, run: Run, name: str, path: Path) -> None:
        """After a checkpoint (`best` or `last`) was written."""

    def note(self, text: str) -> None:
        """A sentence for the user about what the run does now."""

    def ended(self, run: Run, result: dict[str, Any]) -> None:
        """After `result.json` is written."""

    def closed(self) -> None:
        """Always the last call, also after an error or an interruption."""


class TaskLogger(Logger):
    """Tells `dmlcore.progress` of the steps, for trainings that are a part of longer work."""

    def __init__(self) -> None:
        super().__init__()
        self._task = contextlib.ExitStack()

    def started(self, run: Run) -> None:
        self._advance = self._task.enter_context(progress.task("training steps", run.steps))

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        self._advance(record["step"])

    def closed(self) -> None:
        self._task.close()


def flat_numbers(record: dict[str, Any]) -> dict[str, float]:
    """The finite numbers of a record by name; those of a table within it by `table/name`. The step is left out."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        for name, number in [(f"{key}/{k}", v) for k, v in value.items()] if isinstance(value, dict) else [(key, value)]:
            is_number = isinstance(number, int | float) and not isinstance(number, bool)
            if name != "step" and is_number and math.isfinite(number):
                numbers[name] = float(number)
    return numbers


@dataclass(frozen=True)
class SeriesOptions:
    """Options of loggers that write series of numbers."""

    every: int = 1
    """Write every so many steps."""

    def __post_init__(self) -> None:
        check_range("every", self.every, least=1)


class SeriesLogger(Logger):
    """A logger that hands numbers by name and step to another program. Subclasses say which package it needs, and write
    `begin`, `write` and `finish`.

    Names are `train/total`, `train/terms/ms`, `validation/map@r`, `test/map@r` and so on.

    Raises:
        ConfigError: the package is not installed.
    """

    package: ClassVar[str]
    Options: ClassVar[type] = SeriesOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:  # a folder of that name, which such programs leave, is no package
            raise ConfigError(f"the logger '{self.name}' needs {self.package}: pip install {self.package}")
        self._has_begun = False

    def begin(self, run: Run) -> None:
        """Open what is written to. A resumed run writes again what came after its checkpoint, from `run.step` on."""
        raise NotImplementedError

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write numbers of a step."""
        raise NotImplementedError

    def finish(self, is_complete: bool) -> None:
        """Close what is written to."""
        raise NotImplementedError

    def started(self, run: Run) -> None:
        self._is_complete = False
        self.begin(run)
        self._has_begun = True

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        if record["step"] % self.options.every == 0:
            self._write("train", record["step"], record)

    def evaluated(self, run: Run, record: dict[str, Any]) -> None:
        self._write("validation", record["step"], record)

    def ended(self, run: Run, result: dict[str, Any]) -> None:
        for part, measures in result["metrics"].items():
            if part != "validation":  # which is written after each evaluation
                self._write(part, result["chosen_step"], measures)
        self._is_complete = True

    def closed(self) -> None:
        if self._has_begun:
            self.finish(self._is_complete)
            self._has_begun = False

    def _write(self, group: str, step: int, record: dict[str, Any]) -> None:
        if self._has_begun:
            self.write(step, {f"{group}/{name}": number for name, number in flat_numbers(record).items()})
