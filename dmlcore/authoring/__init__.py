"""For authors of plugins: a new package from templates, a benchmark of a loss, the hook reference. Checks are in `testing`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmlcore.authoring.packages import create_package
    from dmlcore.authoring.reference import hook_reference, write_reference
    from dmlcore.authoring.timing import bench

_HOMES = {
    "bench": "timing",
    "create_package": "packages",
    "hook_reference": "reference",
    "write_reference": "reference",
}

__all__ = ["bench", "create_package", "hook_reference", "write_reference"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dmlcore.authoring.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dmlcore.authoring' has no attribute '{name}'")
