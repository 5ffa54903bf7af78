"""Pictures by matplotlib, which is optional: asked for before the work begins, the same file from the same numbers."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from dmlcore.files import write_atomically


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


HOW_TO_DRAW = "no picture: matplotlib is not installed (pip install 'dmlcore[plots]')"
"""What a command says when it cannot draw."""


def pyplot() -> Any:
    """matplotlib.pyplot without a window; only where `can_draw()`."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a `$` in a name is no formula
    matplotlib.rcParams["svg.hashsalt"] = "dmlcore"  # the same numbers give the same file
    from matplotlib import pyplot as module

    return module


def save(figure: Any, path: Path) -> Path:
    """Write a figure as .svg, whole or not at all, and close it; returns the path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path
