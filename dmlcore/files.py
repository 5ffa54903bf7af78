"""Files and folders: writing that leaves earlier results intact, folders, and what JSON and file names can hold."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pickletools
import re
import shutil
from collections.abc import Iterator, Sequence
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
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file for the block to write, which takes the place of another one when it is safely on the disk.

    Args:
        path: the file that is replaced. After an error it is as it was.

    Raises:
        TrainingError: the disk is full or the folder cannot be written.
    """
    # Beside the target, because renaming is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
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


def remove(path: Path) -> None:
    """Remove a file; none is fine.

    Raises:
        TrainingError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def move_folder(folder: Path, place: Path) -> None:
    """Move a folder to where another one may be, which it replaces once the new one lies beside it.

    A process that is killed between two renamings leaves the old one as `.NAME.old` and the new one as `.NAME.new`.

    Raises:
        TrainingError: the disk is full or the place cannot be written.
    """
    beside, old = (place.with_name(f".{place.name}.{age}") for age in ("new", "old"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in (beside, old):
            shutil.rmtree(left, ignore_errors=True)
        shutil.move(folder, beside)
        if place.exists():
            os.replace(place, old)
        os.replace(beside, place)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise write_error(place, error) from error


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


def cache_folder() -> Path:
    """Where things are kept that can be made again: `DML_CACHE`, else `dmlcore` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        ConfigError: there is no home folder and none is named.
    """
    if os.environ.get("DML_CACHE"):
        return Path(os.environ["DML_CACHE"]).absolute()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).absolute() / "dmlcore"
    try:
        return Path.home() / ".cache" / "dmlcore"
    except RuntimeError as error:
        raise ConfigError(f"there is no folder for what is compiled and kept ({error}); set DML_CACHE") from error


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


LONGEST_NAME = 100  # file systems take 255 bytes, which other parts of a name and letters of several bytes share


def in_file_name(names: str) -> str:
    """Names of plugins as part of a file's name: what is no letter, digit or one of `_.+-`, such as `/`, becomes `-`. A long
    name is cut, and a part of its checksum keeps it different from others."""
    plain_name = re.sub(r"[^\w.+-]", "-", names)
    if len(plain_name) <= LONGEST_NAME:
        return plain_name
    return f"{plain_name[: LONGEST_NAME - 20]}-{hashlib.sha256(names.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def expanded(path: str | Path) -> Path:
    """A path with the user's home for `~`; that of a user who does not exist stays as it is, and then does not exist either."""
    return Path(os.path.expanduser(path))


def code_in(error: BaseException, path: Path) -> str:
    """The code that a file of weights names; empty: none. Nothing of it is run.

    Args:
        error: what `torch.load` raised instead of running it.
        path: of the file.
    """
    text = str(error)
    if "TorchScript" in text:
        return "a TorchScript program"
    match = re.search(r"(?:GLOBAL|instantiate class|Unsupported class) ([\w.]+)", text)
    return match[1] if match else _first_global(path)


def _first_global(path: Path) -> str:
    """The first thing that a plain pickle asks for by its name; empty: it asks for nothing, or is no pickle."""
    words: list[str] = []
    with contextlib.suppress(Exception), open(path, "rb") as file:  # it may be cut off, or anything else
        for code, argument, _ in pickletools.genops(file):
            if code.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(words[-2:])
            if isinstance(argument, str):
                words.append(argument)
    return ""


def writable_text(text: str) -> str:
    """Text without halves of surrogate pairs, which stand for bytes of a file name that are no UTF-8 and which no file or
    terminal takes. They are written as `\\udce9`.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def encoded(text: str, what: str) -> bytes:
    """The text in UTF-8, for files that are read again, where a name must be found as it stands.

    Args:
        text: to be written.
        what: the file, for the message.

    Raises:
        ConfigError: it names a file or folder whose name is no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        start, end = text.rfind('"', 0, error.start) + 1, text.find('"', error.start)
        path = writable_text(text[start : end if end > 0 else len(text)])
        raise ConfigError(
            f"{what} cannot be written: the path '{path}' holds bytes that are no UTF-8. Rename the file or folder"
        ) from None


def plain(value: Any) -> Any:
    """A value as JSON can hold it: no NaN or infinity (None instead), no tuples, no numpy scalars, no paths, and
    no text that is no Unicode.
    """
    kind = type(value)
    if kind is float and math.isfinite(value):  # most numbers of a record
        return value
    if isinstance(value, dict):
        return {writable_text(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | bool | None) else writable_text(str(value))


def check_new(path: Path, endings: Sequence[str], option: str, *, overwrite: bool) -> None:
    """Refuse a file to write, before anything is computed.

    Args:
        path: the file.
        endings: that it may have, such as `.csv`.
        option: that named it, for messages.
        overwrite: a file that exists may be replaced.

    Raises:
        ConfigError: it ends otherwise, or exists and shall not be replaced.
    """
    if path.suffix not in endings:
        *others, last = endings
        raise ConfigError(f"{option} is '{path}', but must end in {', '.join(others)}{' or ' if others else ''}{last}")
    if path.exists() and not overwrite:
        flag = option.replace("_", "-")
        raise ConfigError(f"{path} exists already; choose another --{flag}, or replace it with --overwrite")
