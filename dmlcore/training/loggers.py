"""The base of loggers: receivers of a run's records beside `metrics.jsonl`, which is always written. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
