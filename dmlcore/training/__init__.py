"""Training: settings, the run folder, checkpoints, optimiser groups, the schedule and the loop.

Everything is loaded on first use: the command line reads the settings for its help and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.training.loggers import Logger
    from dmlcore.training.loop import train
    from dmlcore.training.run import Run
    from dmlcore.training.settings import RunConfig, Settings

_HOMES = {"Logger": "loggers", "Run": "run", "RunConfig": "settings", "Settings": "settings", "train": "loop"}

__all__ = ["Logger", "Run", "RunConfig", "Settings", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dmlcore.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dmlcore.training' has no attribute '{name}'")
