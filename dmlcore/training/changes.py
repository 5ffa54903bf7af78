"""What may change in a run that goes on or is evaluated, and the refusal of everything else."""

from __future__ import annotations

from typing import Any

from dmlcore.errors import ConfigError
from dmlcore.training.folder import RunFolder
from dmlcore.training.settings import PLACES
from dmlcore.training.sources import Source

CHANGEABLE = (
    "steps",
    "epochs",
    "loggers",
    "log_every",
    "report",
    "workers",
    "device",
    "stop_after",
    "timeout",
    "patience",
    "accumulate",
    "shard_model",
)
"""Settings that may be given anew to a run that goes on: how long it learns, where and in how many parts, but not what from."""


def check_unchanged(folder: RunFolder, before: dict[str, Any]) -> None:
    """Refuse a `config.toml` that says something else than the run was made with.

    Args:
        folder: of the run.
        before: `RunConfig.as_dict` when a checkpoint was saved.

    Raises:
        ConfigError: there is a difference, which is named.
    """
    source = Source.read_run(folder.config)  # as it is written: no component is looked for
    now = {**source.values, **source.tables}
    tables = {str(table) for loggers in (before, now) for table in loggers.get("loggers") or ()}
    differences = []
    for key in {**before, **now}:
        old, new = (values.get(key, _default_of(key)) for values in (before, now))
        if old == new or key in CHANGEABLE or key in tables:
            continue
        if old is None and isinstance(new, dict):
            continue  # of a component that an older version did not know: what is not chosen is refused anyway
        if isinstance(old, dict) and isinstance(new, dict):
            options = {**old, **new}
            names = [name for name in options if old.get(name) != new.get(name)]
            differences += [f"{key}.{name} = {new.get(name)} instead of {old.get(name)}" for name in names]
        else:
            differences.append(f"{key} = {new} instead of {old}")
    if differences:
        told = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise ConfigError(f"{folder.config} has changed since the run was made: {told}. Undo that, or train a new run.")


def _default_of(key: str) -> Any:
    """What a setting was where nothing says it, as in a run from before there was that setting."""
    default = PLACES[key].default if key in PLACES else None
    return list(default) if isinstance(default, tuple) else default
