"""The private folder of compiled functors: where it lies, who may write there, entries that appear whole or not at all.

An entry is a shared object or a cubin and, beside it under the same name, a JSON file that says what it was made of and its
hash. Nothing is loaded that anybody but the user (or root) could have written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, DmlcoreError
from dmlcore.files import cache_folder


def folder() -> Path:
    """Where compiled functors are kept: `kernels` in the folder of what can be made again.

    Raises:
        ConfigError: there is no home folder and none is named.
    """
    return cache_folder() / "kernels"


def opened() -> Path:
    """The folder, made with permissions 0700 where it is missing, and found safe.

    Raises:
        ConfigError: it cannot be made, or others could write there.
    """
    place = folder()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no compiled functors can be kept in {place}: {error.strerror}; set DML_CACHE") from error
    check_private(place)
    return place


def check_private(path: Path) -> None:
    """Raise unless a file or folder is this user's, and only this user can change or replace it.

    Raises:
        ConfigError: it belongs to somebody else, or it or a folder above it can be written by others. A folder above that
            everybody may write is safe where it is sticky, as `/tmp` is: nobody can replace another's files there.
    """
    real = Path(os.path.realpath(path))
    status = real.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"{real} belongs to user {status.st_uid}, so nothing is loaded from it; set DML_CACHE")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{real} can be written by others, so nothing is loaded from it; use `chmod go-w` or DML_CACHE")
    _check_above(real, "set DML_CACHE to another folder")


def check_source(path: Path) -> None:
    """Raise where everybody could change a header that is about to be compiled.

    Raises:
        ConfigError: the file, or a folder above it that is not sticky, can be written by everybody.
    """
    real = Path(os.path.realpath(path))
    if real.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"{real} can be written by everybody, so it is not compiled; run `chmod o-w {real}`")
    _check_above(real, "move the header")


def _check_above(real: Path, advice: str) -> None:
    for parent in real.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigError(f"{parent} can be written by everybody, so nothing below it is trusted; {advice}")


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the folder for one process at a time. Where the file system has no locks, processes may compile the same functor
    twice, and the last one's file stays."""
    handle = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # not every network file system has locks; renaming is atomic everywhere
        yield
    finally:
        os.close(handle)


@contextmanager
def workplace(place: Path) -> Iterator[Path]:
    """A new folder inside, for what is not whole yet; it vanishes at the end."""
    work = Path(tempfile.mkdtemp(prefix="making-", dir=place))  # 0700
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def cached_or_compiled(name: str, compile_into: Callable[[Path], Path]) -> tuple[Path, bool]:
    """An entry's file, and whether it had to be compiled.

    Args:
        name: of the file.
        compile_into: given the folder, adds the entry, by one process at a time, and returns its file.

    Raises:
        ConfigError: others could write to the file or the folder.
        DmlcoreError: nothing can be written there.
    """
    place = opened()

    def whole_entry() -> Path | None:
        file = place / name
        if facts_of(file) is None:
            return None
        check_private(file)
        return file

    if (file := whole_entry()) is not None:
        return file, False
    try:
        with locked(place):
            if (file := whole_entry()) is not None:  # another process was faster
                return file, False
            return compile_into(place), True
    except OSError as error:
        raise DmlcoreError(f"no compiled functors can be kept in {place}: {error.strerror}; set DML_CACHE") from error


def latest(pattern: str) -> Path | None:
    """The newest whole entry whose file's name matches, or None.

    Raises:
        ConfigError: others could write to the file or the folder.
    """
    files = [file for file in opened().glob(pattern) if facts_of(file)]
    for file in files:
        check_private(file)
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def add(place: Path, name: str, file: Path, facts: dict[str, Any]) -> Path:
    """Make a finished file an entry: the facts first, then the file, each by renaming.

    Args:
        place: from `opened`.
        name: of the entry.
        file: in a `workplace`.
        facts: plain values for JSON; the file's hash is added.

    Returns:
        The entry's file.
    """
    os.chmod(file, 0o600)
    content = file.read_bytes()
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    text = json.dumps({**facts, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}, indent=2)
    beside = file.with_name("facts.json")
    beside.write_text(text + "\n")
    os.chmod(beside, 0o600)
    os.replace(beside, place / f"{name}.json")
    target = place / f"{name}{file.suffix}"
    os.replace(file, target)
    return target


def facts_of(file: Path) -> dict[str, Any] | None:
    """What an entry was made of, or None where the entry is not whole."""
    try:
        facts = json.loads(file.with_suffix(".json").read_text())
        content = file.read_bytes()
    except (OSError, ValueError):
        return None
    is_whole = isinstance(facts, dict) and facts.get("sha256") == hashlib.sha256(content).hexdigest()
    return facts if is_whole else None


def entries(suffix: str = ".so") -> list[tuple[Path, dict[str, Any]]]:
    """All whole entries with their facts, by name; none where there is no folder yet.

    Raises:
        ConfigError: the folder is not safe.
    """
    place = folder()
    if not place.is_dir():
        return []
    check_private(place)
    files = ((file, facts_of(file)) for file in sorted(place.glob(f"*{suffix}")))
    return [(file, facts) for file, facts in files if facts is not None]  # the others are being written, or were cut short


def clear(names: list[str] | None = None) -> list[str]:
    """Remove entries, and what interrupted processes left.

    Args:
        names: of headers, without `.h`; None: everything.

    Returns:
        The names of the files of code that are gone. Processes that have loaded one keep it.

    Raises:
        ConfigError: the folder is not safe.
    """
    place = folder()
    if not place.is_dir():
        return []
    check_private(place)
    gone = []
    with locked(place):
        for file in sorted(place.iterdir()):
            if names is not None and file.name.rsplit("-", 2)[0] not in names:
                continue
            if file.is_dir() and file.name.startswith("making-"):
                shutil.rmtree(file, ignore_errors=True)
            elif file.suffix in (".so", ".cubin", ".json"):
                file.unlink(missing_ok=True)
                gone += [file.name] if file.suffix != ".json" else []
    return gone
