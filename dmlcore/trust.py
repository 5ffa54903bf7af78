"""Whose code is run: files that the user names are, files that somebody else's folder names only with the user's consent. The
consent is for the content of a file and is kept for the user, outside of all folders of runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dmlcore.errors import ConfigError

_STATE = "trusted_plugins"  # a line per file: SHA-256 and, for people, the path it had
_MOST_BYTES = 2**26  # of the list that are read


@dataclass(frozen=True)
class Folder:
    """A folder whose configuration may name files of code.

    Attributes:
        path: of the folder.
        needed: kinds of components that are needed from it; files of other kinds are not run at all.
        consents: the user consents to all of its files, which is remembered.
    """

    path: Path
    needed: Collection[str]
    consents: bool = False


_FOLDER: ContextVar[Folder | None] = ContextVar("folder", default=None)


@contextlib.contextmanager
def reading(folder: Folder | None) -> Iterator[None]:
    """While a configuration is used: whose folder it comes from. None: what is named now, the user names."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


def is_left_out(kind: str) -> bool:
    """Whether files of a kind are not needed from the folder that is read now."""
    folder = _FOLDER.get()
    return folder is not None and kind not in folder.needed


def is_foreign() -> bool:
    """Whether what is named now comes from a folder, and not from the user."""
    return _FOLDER.get() is not None


def check(path: str, kind: str) -> None:
    """Refuse to run a file that a folder names and the user has not consented to.

    Args:
        path: of the file.
        kind: of the component in it.

    Raises:
        ConfigError: there is no consent, or the file has changed since.
    """
    folder = _FOLDER.get()
    if folder is None or digest(path) in _trusted():
        return
    if not folder.consents:
        raise ConfigError(
            f"the run in {folder.path} names a {kind} in {path}, a file of code that you have not run before, or that has"
            f" changed since. Nothing of it was run. Read it; if you trust it, repeat the command with --trust-plugins (from"
            f" Python: trusts_plugins=True), which is remembered until the file changes"
        )
    remember([path])


def remember(paths: Collection[str]) -> None:
    """Keep the user's consent to files as they are now. Where that cannot be written the user is asked again."""
    trusted = _trusted()
    lines = [f"{sha256} {json.dumps(path)}\n" for path in paths if (sha256 := digest(path)) not in trusted]
    if not lines:
        return
    with contextlib.suppress(OSError):
        _state_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(_state_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write("".join(lines))  # one write behind the end, so that processes do not mix their lines


def digest(path: str) -> str:
    """SHA-256 of a file's content; of a package's `__init__.py`, of all files of the package, which it may import.

    Raises:
        ConfigError: a file cannot be read.
    """
    file = Path(path)
    try:
        if file.name != "__init__.py":
            return hashlib.sha256(file.read_bytes()).hexdigest()
        whole = hashlib.sha256()
        for place, folders, names in os.walk(file.parent, followlinks=True):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(names):
                content = hashlib.sha256(Path(place, name).read_bytes()).hexdigest()
                whole.update(json.dumps([os.path.relpath(os.path.join(place, name), file.parent), content]).encode())
        return whole.hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _state_file() -> Path:
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~/.local/state"))
    return base / "dmlcore" / _STATE


def _trusted() -> set[str]:
    try:
        with open(_state_file(), encoding="ascii", errors="replace") as file:
            return {line[:64] for line in file.read(_MOST_BYTES).splitlines() if line[64:65] == " "}
    except OSError:
        return set()
