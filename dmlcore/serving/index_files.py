"""The folder of an index: its files, their checksums, and how a change leaves what is there intact.

`index.json` names the files of one generation: unit vectors, the columns of the entries, which entries are still there, and the
structure of the search. A change writes files of the next generation and then replaces `index.json`, so a reader sees the one
state or the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore import progress
from dmlcore.data import pyarrow
from dmlcore.errors import ConfigError, TrainingError, first_line
from dmlcore.files import make_folder, plain, remove_temporaries, sync_folder, write_atomically, write_error
from dmlcore.locks import NAME as LOCK
from dmlcore.seals import SealError, seal, unseal
from dmlcore.serving.entries import release
from dmlcore.serving.index_kinds import KINDS

ABOUT = "index.json"
FORMAT, VERSION = "dmlcore index", 1
_SUFFIXES = {"vectors": ".npy", "entries": ".arrow", "there": ".npy", "search": ".faiss"}
_FILE = re.compile(rf"({'|'.join(_SUFFIXES)})-\d+\.(npy|arrow|faiss)")
_PIECE = 65_536  # rows written in one go


class IndexFolder:
    """The files of an index.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_index(self) -> bool:
        """Whether there is an index."""
        return (self.path / ABOUT).is_file()

    def check_free(self) -> None:
        """Make the folder, or see that it is empty but for what a build left that was killed.

        Raises:
            ConfigError: there is an index, or anything else.
        """
        make_folder(self.path)
        if (self.path / ABOUT).exists():
            raise ConfigError(f"{self.path} holds an index already; choose another --out, or add to it by --add")
        strange = [name for name in os.listdir(self.path) if not _FILE.fullmatch(name) and name != LOCK]
        strange = [name for name in strange if not (name.startswith(".") and name.endswith(".tmp"))]
        if strange:
            raise ConfigError(f"{self.path} is not empty: it holds '{min(strange)}'. Choose another --out")

    def read_about(self) -> dict[str, Any]:
        """What `index.json` says.

        Raises:
            ConfigError: there is no index.
            TrainingError: the file is damaged.
        """
        path = self.path / ABOUT
        if not path.is_file():
            what = "it was not finished; build it again" if self._has_files() else "`dmlcore index` builds one"
            raise ConfigError(f"there is no index in {self.path}: {what}")
        try:
            about, is_sealed = unseal(json.loads(path.read_bytes()))
        except (SealError, ValueError, RecursionError) as error:
            raise TrainingError(f"{path} is damaged: {error}. Build the index again") from error
        if not is_sealed or about.get("format") != FORMAT:
            raise ConfigError(f"{path} is no index of dmlcore")
        if about.get("version") != VERSION:
            raise ConfigError(f"{path} has version {about.get('version')}, but this dmlcore reads version {VERSION}")
        if not _has_all(about):
            raise TrainingError(f"{path} lacks something that an index has. Build the index again")
        return about

    def _has_files(self) -> bool:
        return self.path.is_dir() and any(_FILE.fullmatch(name) for name in os.listdir(self.path))

    def checked(self, about: dict[str, Any]) -> dict[str, Path]:
        """All files that `index.json` names, by role. Errors are those of `file`."""
        return {role: self.file(about, role) for role in about["files"]}

    def file(self, about: dict[str, Any], role: str) -> Path:
        """A file that `index.json` names, whose checksum is right.

        Args:
            about: what `index.json` says.
            role: `vectors`, `entries`, `there` or `search`.

        Raises:
            TrainingError: it is missing or damaged.
        """
        entry = about["files"][role]
        if not _FILE.fullmatch(entry["name"]):  # no other file of this machine is ever opened
            raise TrainingError(f"{self.path / ABOUT} names a strange file for {role}. Build the index again")
        path = self.path / entry["name"]
        try:
            if path.stat().st_size != entry["bytes"] or _digest(path) != entry["sha256"]:
                raise TrainingError(f"{path} is damaged: its bytes have changed since it was written. Build the index again")
        except OSError as error:
            raise TrainingError(f"cannot read {path}: {error.strerror}. Build the index again") from error
        return path

    def write(self, role: str, generation: int, write: Callable[[Path], None]) -> dict[str, Any]:
        """Write a file of a generation, and return its entry in `index.json`.

        Args:
            role: as of `file`.
            generation: a number.
            write: is given the path to write to.
        """
        path = self.path / f"{role}-{generation}{_SUFFIXES[role]}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            return {"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def commit(self, about: dict[str, Any]) -> None:
        """Make the files that `about` names the index, and remove older ones."""
        sync_folder(self.path)
        content = seal(plain({"format": FORMAT, "version": VERSION, **about}))
        write_atomically(self.path / ABOUT, json.dumps(content, indent=2).encode())
        self.remove_others(about)

    def remove_others(self, about: dict[str, Any]) -> None:
        """Remove files of other generations, and what killed processes left."""
        remove_temporaries(self.path)
        names = {entry["name"] for entry in about["files"].values()}
        for name in os.listdir(self.path):
            if _FILE.fullmatch(name) and name not in names:
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()


def _has_all(about: dict[str, Any]) -> bool:
    """Whether what a search needs is there and of its type."""
    numbers = ("count", "dim", "removed", "generation", "effort")
    files = about.get("files")
    return (
        all(type(about.get(name)) is int and about[name] >= 0 for name in numbers)
        and about.get("kind") in list(KINDS)
        and {"asked_kind", "memory", "seed", "model", "reason", "measures", "columns"} <= about.keys()
        and isinstance(files, dict)
        and {"vectors", "entries"} <= files.keys() <= _SUFFIXES.keys()
        and all(isinstance(entry, dict) and {"name", "bytes", "sha256"} <= entry.keys() for entry in files.values())
        and all(isinstance(entry["name"], str) for entry in files.values())
        and (about["kind"] == "flat") == ("search" not in files)
    )


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file, progress.task(f"verifying {path.name}", size) as advance:
        done = 0
        while part := file.read(1 << 22):
            digest.update(part)
            done += len(part)
            advance(done)
    return digest.hexdigest()


def write_vectors(path: Path, parts: Sequence[tuple[np.ndarray, np.ndarray | None]], change: Callable[[Any], Any]) -> None:
    """Write vectors of several arrays into one .npy, piece by piece.

    Args:
        path: to write.
        parts: arrays [n, D], each with the rows that are taken, or None for all.
        change: is applied to every piece.
    """
    sizes = [len(vectors) if rows is None else len(rows) for vectors, rows in parts]
    dim = parts[0][0].shape[1]
    with open(path, "wb") as file, progress.task("writing vectors", sum(sizes)) as advance:
        header = {"descr": "<f4", "fortran_order": False, "shape": (sum(sizes), dim)}
        np.lib.format.write_array_header_2_0(file, header)
        done = 0
        for (vectors, rows), size in zip(parts, sizes, strict=True):
            for start in range(0, size, _PIECE):
                stop = min(start + _PIECE, size)
                piece = vectors[start:stop] if rows is None else vectors[rows[start:stop]]
                file.write(np.ascontiguousarray(change(piece), dtype="<f4").data)
                done += stop - start
                advance(done)
            release(vectors)
        file.flush()


def read_vectors(path: Path, count: int, dim: int) -> np.ndarray:
    """Vectors [N, D] of a file, which stay on the disk.

    Raises:
        TrainingError: they have another shape.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. Build the index again") from error
    if vectors.shape != (count, dim) or vectors.dtype != np.float32:
        raise TrainingError(f"{path} is {vectors.dtype} of shape {vectors.shape}. Build the index again")
    return vectors


def write_table(path: Path, table: Any) -> None:
    """Write a table of Arrow in pieces, so that it can be read from the disk."""
    arrow = pyarrow()
    with arrow.OSFile(str(path), "wb") as sink, arrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=_PIECE)


def read_table(path: Path, count: int) -> Any:
    """A table of Arrow whose values stay on the disk.

    Raises:
        TrainingError: it is damaged, or has another number of rows.
    """
    arrow = pyarrow()
    try:
        table = arrow.ipc.open_file(arrow.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {first_line(error)}. Build the index again") from error
    if len(table) != count:
        raise TrainingError(f"{path} has {len(table):,} rows, but {count:,} are expected. Build the index again")
    return table
