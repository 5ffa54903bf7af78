"""dmlcore: deep metric learning with many losses at once, fused into one pass over the similarities.

Everything is loaded on first use, so that `import dmlcore` and `dmlcore --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dmlcore.hookspecs import hookimpl
from dmlcore.version import VERSION as __version__

if TYPE_CHECKING:
    from dmlcore import data, ensemble, evaluation, kernels, losses, models, serving, testing, training
    from dmlcore.ensemble import LossEnsemble, distributed
    from dmlcore.losses import CrossBatchMemory
    from dmlcore.serving import load
    from dmlcore.training import train

_PACKAGES = ("data", "ensemble", "evaluation", "kernels", "losses", "models", "serving", "testing", "training")

__all__ = [
    "CrossBatchMemory",
    "LossEnsemble",
    "__version__",
    "data",
    "distributed",
    "ensemble",
    "evaluation",
    "hookimpl",
    "kernels",
    "load",
    "losses",
    "models",
    "serving",
    "testing",
    "train",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"dmlcore.{name}")
    if name in ("LossEnsemble", "distributed"):
        return getattr(importlib.import_module("dmlcore.ensemble"), name)
    if name == "CrossBatchMemory":
        return importlib.import_module("dmlcore.losses").CrossBatchMemory
    if name == "load":
        return importlib.import_module("dmlcore.serving").load
    if name == "train":
        return importlib.import_module("dmlcore.training").train
    raise AttributeError(f"module 'dmlcore' has no attribute '{name}'")
