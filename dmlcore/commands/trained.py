"""Flags of the commands that use a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dmlcore.flags import flag, typed_values

TRUST = flag("trust_plugins", bool, "Run the Python files that the run's configuration names, and remember that.", False)
RUN = flag("run", Path, "Folder of a run.", is_positional=True)
MODEL = flag("model", str, "A trained model: the folder of a run, or one that `dmlcore export` wrote.", is_positional=True)
ENCODING = [
    flag("batch_size", int, "Samples at a time.", 256),
    flag("workers", int | None, "Threads that read and prepare samples (default: one per core)."),
    flag("precision", Literal["fp32", "bf16", "fp16"], "In which the model runs.", "fp32"),
]
LOADING = [
    flag("checkpoint", str, "`best`, `last` or `previous`.", "best"),
    TRUST,
    flag("device", str, "`auto`, `cpu`, `cuda` or `cuda:N`.", "auto"),
]


def data_options(tables: dict[str, Any]) -> dict[str, Any]:
    """Options of the one data source that the command has flags for."""
    return next((typed_values(values) for values in tables.values()), {})
