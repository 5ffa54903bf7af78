"""Telling loggers and plugins what happens in a run. What they do with it is no part of the run: one that fails is warned about
once, and training goes on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dmlcore import plugins
from dmlcore.errors import DmlcoreError
from dmlcore.training.loggers import Logger

if TYPE_CHECKING:
    from dmlcore.training.run import Run


class Events:
    """The receivers of a run's events.

    Args:
        run: whose events.
        loggers: told first; then the hooks of plugins.

    Attributes:
        warnings: about receivers that failed, by what failed.
    """

    def __init__(self, run: Run, loggers: Sequence[Logger]) -> None:
        self.run = run
        self.loggers = loggers
        self.warnings: dict[str, str] = {}

    def tell(self, event: str, call: Callable[[Logger], None], **arguments: Any) -> None:
        """Tell of an event.

        Args:
            event: `step_ended` and so on; the hook is called `dmlcore_` and that.
            call: calls the method of a logger.
            arguments: of the hook, beside `run`.

        Raises:
            DmlcoreError: what a logger or a hook raises on purpose, to stop the run.
        """
        if not self.run.writes:  # the process that writes tells for all
            return
        for logger in self.loggers:
            self._tell_logger(logger, event, functools.partial(call, logger))
        hook = f"dmlcore_{event}"

        def failed(owner: str, error: Exception) -> None:
            self._warn(f"the hook {hook} of {owner}", error)

        plugins.call_event(hook, failed, run=self.run, **arguments)

    def note(self, text: str) -> None:
        """Say a sentence about what the run does now."""
        for logger in self.loggers:
            logger.note(text)

    def close(self) -> None:
        """Tell loggers that nothing more comes."""
        for logger in self.loggers:
            self._tell_logger(logger, "closed", logger.closed)

    def _tell_logger(self, logger: Logger, event: str, call: Callable[[], None]) -> None:
        try:
            call()
        except DmlcoreError:
            raise
        except Exception as error:
            self._warn(f"the logger '{logger.name or type(logger).__name__}' ({event})", error)

    def _warn(self, receiver: str, error: Exception) -> None:
        if receiver in self.warnings:
            return
        self.warnings[receiver] = f"{receiver} failed: {type(error).__name__}: {error}. Training goes on; this is said once."
        for logger in self.loggers:
            with contextlib.suppress(Exception):  # the logger that failed may be among them
                logger.note(f"warning: {self.warnings[receiver]}")
