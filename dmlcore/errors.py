"""The errors dmlcore raises, and the nearest-name suggestion they carry. No printing and no exiting here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DmlcoreError(Exception):
    """Base of every error raised on purpose. The command line shows it as one line and exits with `exit_status`."""

    exit_status = 1
    is_of_all = False
    """Whether every process of a training raises it, so that the first one tells it for all."""


class ConfigError(DmlcoreError, ValueError):
    """The user's mistake: an unknown name or option, a value out of range, a wrong shape. Exit status 2."""

    exit_status = 2


class DataError(ConfigError):
    """Data that cannot be used as it is: a missing path, one class, an unreadable file. Exit status 2."""


class PluginError(DmlcoreError):
    """A plugin that breaks its contract: raises on import, returns a wrong shape, claims a taken name."""


class TrainingError(DmlcoreError):
    """Training cannot go on: a loss or gradient that is not finite, a full disk, a damaged checkpoint."""


class AnotherFailed(TrainingError):
    """Another process of the training has failed. It tells why, unless it was killed.

    Args:
        text: what is known of it.
        exit_status: of the other, so that all end with the same, whichever ends first.
    """

    is_of_all = True

    def __init__(self, text: str, exit_status: int = 1) -> None:
        super().__init__(text)
        self.exit_status = exit_status


def exit_status_of(error: BaseException) -> int:
    """The exit status of a process that an error ends."""
    return error.exit_status if isinstance(error, DmlcoreError) else 1


def of_all(error: DmlcoreError) -> DmlcoreError:
    """An error that every process raises."""
    error.is_of_all = True
    return error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a dot at its end; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .")


class Interrupted(KeyboardInterrupt):
    """Work that was stopped: by Ctrl-C, by another signal, or because its time was up. What was done is kept.

    Args:
        text: how to go on.
        status: of the process: 128 and the number of the signal, or 0 where the end was planned.
    """

    def __init__(self, text: str = "", status: int = 130) -> None:
        super().__init__(text)
        self.status = status


def status_of(interrupt: KeyboardInterrupt) -> int:
    """The exit status of an interrupt of any origin."""
    return getattr(interrupt, "status", 130)


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant; empty where none is near."""
    by_letters = {known_name.casefold(): known_name for known_name in sorted(names, reverse=True)}
    near = difflib.get_close_matches(name[:LONGEST].casefold(), sorted(by_letters), n=1, cutoff=0.5)
    return by_letters[near[0]] if near else ""


LONGEST = 200  # letters of a name that are compared, since that takes the square of their number
LISTED = 12  # names that fit into one line; of more, the nearest are a better answer


def suggestion(name: str, names: Iterable[str]) -> str:
    """What may have been meant: ` Did you mean 'x'?` for a near name, else the names there are, or the nearest of many.

    Args:
        name: what the user wrote.
        names: the names that exist.
    """
    names = sorted(names)
    if near := nearest(name, names):
        return f" Did you mean '{near}'?"
    if len(names) <= LISTED:
        return f" Known: {', '.join(names)}." if names else ""
    return (
        f" The nearest of {len(names)} names: {', '.join(difflib.get_close_matches(name[:LONGEST], names, n=3, cutoff=0.0))}."
    )
