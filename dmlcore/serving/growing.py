"""A matrix of embeddings on the disk that grows block by block. What was written survives the end of the process, however it
comes, and is checked before the matrix grows on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.files import make_folder, write_atomically, write_error
from dmlcore.locks import FolderLock
from dmlcore.seals import SealError, seal, unseal

_VALUES, _PROGRESS = "rows.f32", "progress.jsonl"


class GrowingMatrix:
    """Rows float32 in a folder. A context manager, which keeps the folder unless `remove` was called.

    Args:
        folder: for the matrix alone.
        width: columns.
        identity: plain values that say whose rows these are. Those of another identity are dropped.
        note: is told in a sentence where rows of an earlier process are taken or dropped.

    Attributes:
        rows: that are there.
        failed: by row why it holds nothing.

    Raises:
        ConfigError: another process writes here.
        TrainingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, width: int, identity: dict[str, Any], note: Callable[[str], None]) -> None:
        self.folder = make_folder(folder)
        self.width = width
        self.rows = 0
        self.failed: dict[int, str] = {}
        self._lock = FolderLock(folder, note)
        self._lines: list[bytes] = [_line({"identity": identity})]
        self._open(note)

    def __enter__(self) -> GrowingMatrix:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def append(self, block: np.ndarray, failed: dict[int, str]) -> None:
        """Write rows behind those that are there, and bring them to the disk.

        Args:
            block: float32 [b, width].
            failed: by row of the block why it holds nothing.

        Raises:
            TrainingError: the disk is full. The rows before are intact.
        """
        content = np.ascontiguousarray(block, dtype=np.float32)
        told = {str(row + self.rows): why for row, why in failed.items()}
        entry = {"rows": len(content), "sha256": hashlib.sha256(content.data).hexdigest(), "failed": told}
        line = _line(entry)
        for name, data in ((_VALUES, content.data), (_PROGRESS, line)):  # the values first: a line says that they are there
            try:
                with open(self.folder / name, "ab") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise write_error(self.folder / name, error) from error
        self._take(entry)

    def values(self) -> np.ndarray:
        """All rows float32 [rows, width], which stay on the disk."""
        if not self.rows:
            return np.empty((0, self.width), dtype=np.float32)
        return np.memmap(self.folder / _VALUES, dtype=np.float32, mode="r", shape=(self.rows, self.width))

    def remove(self) -> None:
        """Remove the folder."""
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, note: Callable[[str], None]) -> None:
        values, progress = self.folder / _VALUES, self.folder / _PROGRESS
        with contextlib.suppress(OSError):
            self._read(progress.read_bytes().splitlines(keepends=True), values, note)
        try:
            with open(values, "ab") as file:
                file.truncate(4 * self.width * self.rows)
        except OSError as error:
            raise write_error(values, error) from error
        write_atomically(progress, b"".join(self._lines))

    def _read(self, lines: list[bytes], values: Path, note: Callable[[str], None]) -> None:
        """Take the rows of an earlier process as far as they are intact."""
        if lines[:1] != self._lines:
            note("an earlier part was of another model or other data, and is begun anew")
            return
        with open(values, "rb") as file:
            for line in lines[1:]:
                try:
                    entry, is_sealed = unseal(json.loads(line))
                    content = file.read(4 * self.width * entry["rows"])
                    if not is_sealed or hashlib.sha256(content).hexdigest() != entry["sha256"]:
                        break
                except (SealError, ValueError, KeyError, TypeError):
                    break
                self._lines.append(line)
                self._take(entry)
        if self.rows:
            note(f"{self.rows:,} embeddings are there already, intact: going on from these")

    def _take(self, entry: dict[str, Any]) -> None:
        self.rows += entry["rows"]
        self.failed |= {int(row): why for row, why in entry["failed"].items()}


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(seal(value), sort_keys=True) + "\n").encode()
