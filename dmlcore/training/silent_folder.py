"""The folder of a run in a process that writes nothing, because another does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dmlcore.training.folder import RunFolder


class SilentFolder(RunFolder):
    """A `RunFolder` that is read and never written. What would be written is forgotten."""

    def lock(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Nothing: the process that writes has the folder."""

    def make(self, config: str, split: bytes | None = None) -> None:
        """Nothing."""

    def write_config(self, config: str) -> None:
        """Nothing."""

    def append(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def clear_records(self) -> None:
        """Nothing."""

    def keep_records(self, mark: dict[str, Any], note: Callable[[str], None]) -> None:
        """Nothing."""

    def write_result(self, result: dict[str, Any]) -> None:
        """Nothing."""
