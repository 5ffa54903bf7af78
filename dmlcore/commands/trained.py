"""Flags of the commands that use a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmlcore.flags import flag, typed_values

TRUST = flag("trust_plugins", bool, "Run the Python files that the run's configuration names, and remember that.", False)
RUN = flag("run", Path, "Folder of a run.", is_positional=True)
LOADING = [
    flag("checkpoint", str, "`best`, `last` or `previous`.", "best"),
    TRUST,
    flag("device", str, "`auto`, `cpu`, `cuda` or `cuda:N`.", "auto"),
]


def data_options(tables: dict[str, Any]) -> dict[str, Any]:
    """Options of the one data source that the command has flags for."""
    return next((typed_values(values) for values in tables.values()), {})
