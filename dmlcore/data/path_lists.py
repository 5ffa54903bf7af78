"""Texts that are made when they are asked for. So the paths of very many files take little memory: a table of folders, and the
names of the files joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

_ENCODED = "surrogateescape"  # names of files that are no UTF-8


class LazyTexts(Sequence[str]):
    """Texts that are made when they are asked for."""

    def text(self, row: int) -> str:
        """The text of a row, from 0 on."""
        raise NotImplementedError

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.text(int(row) % len(self))


class TextColumn(LazyTexts):
    """Texts as their joined bytes: what they are long, and 8 bytes each.

    Args:
        joined: uint8, all texts one after the other.
        ends: int64 [N], where each text ends.
    """

    def __init__(self, joined: np.ndarray, ends: np.ndarray) -> None:
        self.joined = joined
        self.ends = ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextColumn:
        """From texts."""
        encoded = [text.encode("utf-8", _ENCODED) for text in texts]
        ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.joined[start : int(self.ends[row])].tobytes().decode("utf-8", _ENCODED)


class PathList(LazyTexts):
    """Paths of files, made when they are asked for.

    Args:
        folders: of the files, each below `root`.
        names: of the files, N.
        folder_of: int32 [N], the folder of each file.
        root: absolute, or relative to the working folder.
        rows: int64 [n], which of the files, in this order. None: all.
    """

    def __init__(
        self, folders: TextColumn, names: TextColumn, folder_of: np.ndarray, root: str, rows: np.ndarray | None = None
    ) -> None:
        self.folders = folders
        self.names = names
        self.folder_of = folder_of
        self.root = root
        self._rows = rows

    @classmethod
    def of(cls, paths: Sequence[str], root: str) -> PathList:
        """From paths below a root."""
        parts = [os.path.split(path) for path in paths]
        number: dict[str, int] = {}
        folder_of = np.fromiter((number.setdefault(head, len(number)) for head, _ in parts), dtype=np.int32, count=len(parts))
        folders = TextColumn.of([os.path.relpath(head, root) for head in number])
        return cls(folders, TextColumn.of([name for _, name in parts]), folder_of, root)

    def select(self, rows: np.ndarray) -> PathList:
        """Some of the paths, int64 [n], in this order."""
        own = rows if self._rows is None else self._rows[rows]
        return PathList(self.folders, self.names, self.folder_of, self.root, own)

    def __len__(self) -> int:
        return len(self.names) if self._rows is None else len(self._rows)

    def text(self, row: int) -> str:
        place = row if self._rows is None else int(self._rows[row])
        folder = self.folders[int(self.folder_of[place])]
        return (
            os.path.join(self.root, self.names[place]) if folder == "." else os.path.join(self.root, folder, self.names[place])
        )
