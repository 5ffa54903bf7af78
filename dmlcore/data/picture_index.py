"""What was learnt of a folder of very many pictures, kept in the user's cache: so the next start need not look at each of them.

An index counts as long as each folder below the root is the same one and was not written to. So files that are added, removed
or renamed are seen. A file whose content is replaced in place is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data.images import Header
from dmlcore.data.path_lists import PathList, TextColumn
from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import cache_folder, replacing
from dmlcore.version import VERSION

LEAST = 10_000  # pictures that are looked for faster than an index of them is of use
LARGEST = 2**30  # bytes of all indexes together
_MAGIC = b"dmlcore-photos1\n"  # 16 bytes, so that numbers lie at multiples of 8
_YOUNG = 2 * 10**9  # nanoseconds: a folder that was written to so shortly before may be written to again unseen
_SUFFIX = ".index"
_FIXED = ("folder_marks", "folder_joined", "folder_ends", "name_joined", "name_ends", "folder_of", "labels", "parts")
_LATER = ("looked_at", "headers", "digests")


@dataclass
class PictureIndex:
    """The pictures of a folder, and what is known of them.

    Attributes:
        file: where it is kept.
        about: plain values: names of classes and parts, notes, and by row why a picture cannot be read.
        arrays: by name. `folder_marks` int64 [F, 2] (time of the last change, identity), the folders that were read as
            `folder_joined` and `folder_ends`, the pictures as `name_joined`, `name_ends` and `folder_of`, `labels` int32 [N],
            `parts` int8 [N]; later `looked_at` int64 [n], `headers` int32 [n, 3] (height, width, grey; -1 unreadable),
            `digests` uint64 [N].
        root: of the data.
        is_kept: it may be written.
    """

    file: Path
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    root: str
    is_kept: bool = True
    _folders: TextColumn = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._folders = TextColumn(self.arrays["folder_joined"], self.arrays["folder_ends"])

    def paths(self, root: str) -> Sequence[str]:
        """The pictures, in the order of the search, below the root as it is called now."""
        names = TextColumn(self.arrays["name_joined"], self.arrays["name_ends"])
        paths = PathList(self._folders, names, self.arrays["folder_of"], root)
        return paths if len(paths) >= LEAST else list(paths)

    def has_seen(self, rows: np.ndarray) -> bool:
        """Whether just these pictures, int64 [n], were read before."""
        return "headers" in self.arrays and np.array_equal(self.arrays["looked_at"], rows)

    def headers(self) -> list[Header | str]:
        """Of the pictures that were read what their headers say, or why they cannot be read."""
        failed = self.failed()
        return [
            failed.get(row, "damaged") if height < 0 else Header(height, width, bool(is_grey))
            for row, (height, width, is_grey) in enumerate(self.arrays["headers"].tolist())
        ]

    def remember_headers(self, rows: np.ndarray, headers: Sequence[Header | str], failed: dict[int, str]) -> None:
        """Add what reading some pictures, int64 [n], has told. `failed` is by place among them."""
        self.about["failed"] = {str(row): reason for row, reason in failed.items()}
        values = [
            (-1, -1, 0) if isinstance(header, str) else (header.height, header.width, header.is_grey) for header in headers
        ]
        self.remember(looked_at=rows, headers=np.array(values, dtype=np.int32).reshape(-1, 3))

    def digests(self, rows: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Numbers of the contents of some pictures, uint64 [n].

        Args:
            rows: int64 [n].
            read: gives them, where they are not known.
        """
        numbers = self.arrays.get("digests")
        if numbers is None or not numbers[rows].all():
            numbers = np.zeros(len(self.arrays["labels"]), dtype=np.uint64)
            numbers[rows] = read()
            self.remember(digests=numbers)
        return numbers[rows]

    def failed(self) -> dict[int, str]:
        """By place among those looked at why a picture cannot be read."""
        return {int(row): str(reason) for row, reason in self.about.get("failed", {}).items()}

    def remember(self, **arrays: np.ndarray) -> None:
        """Add what was learnt later, and write it where that can be done."""
        self.arrays.update(arrays)
        if self.is_kept:
            with contextlib.suppress(OSError, TrainingError):  # no cache, or a full one: the index is a convenience
                _write(self)

    def _is_current(self) -> bool:
        for folder, (changed, identity) in zip(self._folders, self.arrays["folder_marks"].tolist(), strict=True):
            if mark_of(os.path.join(self.root, folder)) != (changed, identity):
                return False
        return True


def mark_of(folder: str) -> tuple[int, int]:
    """When a folder was changed last, and which one it is. (-1, -1): it is gone."""
    try:
        status = os.stat(folder)
    except OSError:
        return -1, -1
    return status.st_mtime_ns, status.st_ino


def new_index(
    root: str,
    purpose: str,
    paths: Sequence[str],
    labels: Sequence[int],
    parts: Sequence[int],
    marks: dict[str, tuple[int, int]],
    about: dict[str, Any],
) -> PictureIndex:
    """The index of a search.

    Args:
        root: absolute path.
        purpose: what was looked for, beside the folder.
        paths: of pictures, N.
        labels, parts: a number per picture.
        marks: by folder that was read, as `mark_of` gave it before.
        about: plain values.
    """
    listed = PathList.of(paths, root)
    read = [os.path.relpath(folder, root) for folder in marks]
    place = {folder: number for number, folder in enumerate(read)}
    of_listed = np.array([place[folder] for folder in listed.folders], dtype=np.int32)
    folders = TextColumn.of(read)
    values = np.array(list(marks.values()), dtype=np.int64).reshape(-1, 2)
    arrays = {
        "folder_marks": values,
        "folder_joined": folders.joined,
        "folder_ends": folders.ends,
        "name_joined": listed.names.joined,
        "name_ends": listed.names.ends,
        "folder_of": of_listed[listed.folder_of],
        "labels": np.asarray(labels, dtype=np.int32),
        "parts": np.asarray(parts, dtype=np.int8),
    }
    is_settled = not len(values) or int(values[:, 0].max()) + _YOUNG < time.time_ns()
    is_kept = len(paths) >= LEAST and is_settled
    return PictureIndex(_file_of(root, purpose) if is_kept else Path(), about, arrays, root, is_kept)


def read_index(root: str, purpose: str) -> PictureIndex | None:
    """The index of a folder, memory-mapped. None: there is none, it is damaged, of another version, or not of the folder as it
    is."""
    try:
        file = _file_of(root, purpose)
        content = np.memmap(file, dtype=np.uint8, mode="r")
        start = len(_MAGIC)
        if content[:start].tobytes() != _MAGIC:
            return None
        length, checksum = (int(number) for number in content[start : start + 16].view("<u8"))
        body = content[start + 16 :]
        if zlib.crc32(body.data) != checksum:
            return None
        header = json.loads(body[:length].tobytes())
        if header["version"] != VERSION or header["root"] != root:
            return None
        arrays, place = {}, length
        for name, kind, shape in header["arrays"]:
            place += -place % 8
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            arrays[name] = np.frombuffer(body[place : place + size].data, dtype=kind).reshape(shape)
            place += size
        index = PictureIndex(file, header["about"], arrays, root)
        if not set(_FIXED) <= arrays.keys() or not index._is_current():
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # of the oldest, those used last are kept
        return index
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        return None


def _write(index: PictureIndex) -> None:
    index.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arrays = {name: np.ascontiguousarray(index.arrays[name]) for name in (*_FIXED, *_LATER) if name in index.arrays}
    header = json.dumps(
        {
            "version": VERSION,
            "root": index.root,
            "about": index.about,
            "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
        }
    ).encode("ascii")
    pieces, place = [header], len(header)
    for array in arrays.values():
        pieces += [b"\0" * (-place % 8), array.tobytes()]
        place += len(pieces[-2]) + len(pieces[-1])
    if place > LARGEST:
        return
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    with replacing(index.file) as temporary, open(temporary, "wb") as file:
        file.write(_MAGIC + np.array([len(header), checksum], dtype="<u8").tobytes())
        file.writelines(pieces)
    _make_room(index.file)


def _make_room(latest: Path) -> None:
    """Remove the indexes that were used longest ago, until the others are within the limit."""
    entries = sorted(latest.parent.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in entries:
        total += file.stat().st_size
        if total > LARGEST and file != latest:
            file.unlink(missing_ok=True)


def _file_of(root: str, purpose: str) -> Path:
    name = blake2b(f"{root}\0{purpose}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / "pictures" / f"{name}{_SUFFIX}"
