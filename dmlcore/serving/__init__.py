"""A trained model and what is done with it. Names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.serving.embed import write_embeddings
    from dmlcore.serving.load import TrainedRun
    from dmlcore.serving.report import write_report

_HOMES = {"TrainedRun": "load", "write_embeddings": "embed", "write_report": "report"}

__all__ = ["TrainedRun", "write_embeddings", "write_report"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dmlcore.serving.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dmlcore.serving' has no attribute '{name}'")
