"""Files of arrays and plain values that are kept in the user's cache and can be made again: how they are written, read and
checked, and how much room they may take. What they hold is not known here.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.errors import ConfigError, TrainingError
from dmlcore.files import cache_folder, remove_temporaries, replacing
from dmlcore.version import VERSION

LARGEST = 2**30  # bytes of all files together
_MAGIC = b"dmlcore-photos2\n"  # 16 bytes, so that numbers lie at multiples of 8
_SUFFIX = ".index"


def file_of(root: str, purpose: str) -> Path:
    """The file for a root and a purpose.

    Raises:
        ConfigError: there is no place for a cache.
    """
    name = blake2b(f"{root}\0{purpose}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / "pictures" / f"{name}{_SUFFIX}"


def read_arrays(file: Path, root: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Plain values and arrays by name, memory-mapped. None: no such file, a damaged one, or of another version or root."""
    try:
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
        with contextlib.suppress(OSError):
            os.utime(file)  # of the oldest, those used last are kept
        return dict(header["about"]), arrays
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_arrays(file: Path, root: str, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write such a file where that can be done: without a cache, or with a full disk, nothing happens.

    Processes may write the same file at once: each replaces it as a whole, and the last one stays.

    Args:
        file: where it is kept.
        root: what it is about.
        about: plain values.
        arrays: by name.
    """
    with contextlib.suppress(OSError, TrainingError, ConfigError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(file, root, about, {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _write(file: Path, root: str, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    entries = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    header = json.dumps({"version": VERSION, "root": root, "about": about, "arrays": entries}).encode("ascii")
    pieces, place = [memoryview(header)], len(header)
    for array in arrays.values():
        pieces += [memoryview(b"\0" * (-place % 8)), array.reshape(-1).view(np.uint8).data]
        place += len(pieces[-2]) + len(pieces[-1])
    if place > LARGEST:
        return
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        opened.write(_MAGIC + np.array([len(header), checksum], dtype="<u8").tobytes())
        opened.writelines(pieces)
    _make_room(file)


def _make_room(latest: Path) -> None:
    """Remove the files that were used longest ago, until the others are within the limit, and what killed writers left."""
    remove_temporaries(latest.parent)
    entries = sorted(latest.parent.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in entries:
        total += file.stat().st_size
        if total > LARGEST and file != latest:
            file.unlink(missing_ok=True)
