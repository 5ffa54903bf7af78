"""Training: settings and configuration, building of a run, the step and the loop, checkpoints, the run folder.

Everything is loaded on first use: the command line reads the settings for its help and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.training.configuration import RunConfig
    from dmlcore.training.graphless import uncompiled
    from dmlcore.training.loggers import Logger, SeriesLogger, SeriesOptions, flat_numbers
    from dmlcore.training.optimiser import Optimizer
    from dmlcore.training.run import Run
    from dmlcore.training.schedule import Schedule
    from dmlcore.training.settings import Settings
    from dmlcore.training.start import train

_HOMES = {
    "Logger": "loggers",
    "Optimizer": "optimiser",
    "Run": "run",
    "RunConfig": "configuration",
    "Schedule": "schedule",
    "SeriesLogger": "loggers",
    "SeriesOptions": "loggers",
    "Settings": "settings",
    "flat_numbers": "loggers",
    "train": "start",
    "uncompiled": "graphless",
}

__all__ = [
    "Logger",
    "Optimizer",
    "Run",
    "RunConfig",
    "Schedule",
    "SeriesLogger",
    "SeriesOptions",
    "Settings",
    "flat_numbers",
    "train",
    "uncompiled",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dmlcore.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dmlcore.training' has no attribute '{name}'")
