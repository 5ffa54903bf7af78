"""Files and folders: writing that leaves earlier results intact, folders, and what JSON and file names can hold."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any

from dmlcore.errors import ConfigError, TrainingError


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is either there in full or not at all.

    Args:
        path: the file; one that exists is replaced only after the new content is safely on the disk.
        content: the bytes.

    Raises:
        TrainingError: the disk is full or the folder cannot be written.
    """
    # Beside the target, because renaming is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk: a rename may be lost in a power failure before."""
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what writers of this folder left when they were killed. Only those that are dead on this machine count."""
    for path in folder.glob(".*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not _is_alive(int(number)):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # nothing is being written now, so an earlier process had the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_error(path: Path, error: OSError) -> TrainingError:
    """The line a user reads when a file cannot be written."""
    return TrainingError(
        f"cannot write {path}: {error.strerror or error}. What was written before is intact; free some space"
        f" (or choose another folder) and repeat the command."
    )


def make_folder(path: Path) -> Path:
    """Make a folder and those above it; one that exists is fine.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror}. Choose another --out.") from error
    return path


def in_file_name(names: str) -> str:
    """Names of plugins as part of a file's name: what is no letter, digit or one of `_.+-`, such as `/`, becomes `-`."""
    return re.sub(r"[^\w.+-]", "-", names)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: no NaN or infinity (None instead), no tuples, no numpy scalars, no paths."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
