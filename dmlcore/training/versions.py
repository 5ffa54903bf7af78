"""The versions that decide about a run's numbers."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from dmlcore.version import VERSION


def versions() -> dict[str, str]:
    """By the name of what is installed."""
    installed = {"dmlcore": VERSION, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
