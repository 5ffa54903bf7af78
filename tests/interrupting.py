"""Interrupting a run, as Ctrl-C would, and what it recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmlcore.training import Logger
from dmlcore.training.run import Run

TIMING = ("images_per_second", "seconds")


class Stop(Logger):
    """Interrupts at the end of a step.

    Args:
        step: which one.
    """

    name = "stop"

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def step_ended(self, run: Run, record: dict[str, Any]) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt


def records(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
