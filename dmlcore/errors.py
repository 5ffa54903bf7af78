"""The errors dmlcore raises, and the nearest-name suggestion they carry. No printing and no exiting here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DmlcoreError(Exception):
    """Base of every error raised on purpose. The command line shows it as one line and exits with `exit_status`."""

    exit_status = 1


class ConfigError(DmlcoreError, ValueError):
    """The user's mistake: an unknown name or option, a value out of range, a wrong shape. Exit status 2."""

    exit_status = 2


class DataError(ConfigError):
    """Data that cannot be used as it is: a missing path, one class, an unreadable file. Exit status 2."""


class PluginError(DmlcoreError):
    """A plugin that breaks its contract: raises on import, returns a wrong shape, claims a taken name."""


class TrainingError(DmlcoreError):
    """Training cannot go on: a loss or gradient that is not finite, a full disk, a damaged checkpoint."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest known name, else the list of known names.

    Args:
        name: what the user wrote.
        known: the names that exist.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
