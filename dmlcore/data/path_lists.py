"""Texts that are made when they are asked for. So the paths of very many files take little memory: a table of folders, and the
names of the files joined."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_ENCODED = "surrogateescape"  # names of files that are no UTF-8
_BLOCK = 2**14


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
    def of(cls, texts: Iterable[str]) -> TextColumn:
        """From texts, which are taken one by one."""
        joined, ends = bytearray(), array("q")
        for text in texts:
            joined += text.encode("utf-8", _ENCODED)
            ends.append(len(joined))
        return cls(np.frombuffer(joined, dtype=np.uint8), np.frombuffer(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def text(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.joined[start : int(self.ends[row])].tobytes().decode("utf-8", _ENCODED)


class PathList(LazyTexts):
    """Paths of files, made when they are asked for.

    Args:
        folders: of the files, as they are written up to the last separator, below `root` or absolute.
        names: of the files, N.
        folder_of: int32 [N], the folder of each file.
        root: absolute, or relative to the working folder. Empty: the working folder.
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
        self._prefix = os.path.join(root, "") if root else ""

    @classmethod
    def of(cls, paths: Iterable[str], root: str) -> PathList:
        """From paths, which are taken one by one. Those below a root are kept relative to it."""
        number: dict[str, int] = {}
        folder_of = array("i")

        def names() -> Iterable[str]:
            for path in paths:
                place = path.rfind(os.sep) + 1
                folder_of.append(number.setdefault(path[:place], len(number)))
                yield path[place:]

        column = TextColumn.of(names())
        folders = TextColumn.of(_below(folder, root) for folder in number)
        return cls(folders, column, np.frombuffer(folder_of, dtype=np.int32), root)

    def select(self, rows: np.ndarray) -> PathList:
        """Some of the paths, int64 [n], in this order."""
        own = rows if self._rows is None else self._rows[rows]
        return PathList(self.folders, self.names, self.folder_of, self.root, own)

    def __len__(self) -> int:
        return len(self.names) if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """All paths in turn, in a fraction of the time that asking for each takes."""
        folders = [self.folder_path(number) for number in range(len(self.folders))]
        for first in range(0, len(self), _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, len(self)))
            places = rows if self._rows is None else self._rows[rows]
            starts = np.where(places > 0, self.names.ends[places - 1], 0).tolist()
            spans = zip(self.folder_of[places].tolist(), starts, self.names.ends[places].tolist(), strict=True)
            for folder, start, end in spans:
                yield folders[folder] + self.names.joined[start:end].tobytes().decode("utf-8", _ENCODED)

    def text(self, row: int) -> str:
        place = row if self._rows is None else int(self._rows[row])
        return self.folder_path(int(self.folder_of[place])) + self.names[place]

    def folder_path(self, number: int) -> str:
        """A folder, with a separator behind it; empty: the working folder."""
        folder = self.folders[number]
        return folder if os.path.isabs(folder) else self._prefix + folder


def _below(folder: str, root: str) -> str:
    """A folder relative to a root where it is written as one below it, else absolute."""
    prefix = os.path.join(root, "") if root else ""
    if root == os.curdir and not os.path.isabs(folder):
        return folder.removeprefix(prefix)
    below = folder.removeprefix(prefix)
    is_below = folder.startswith(prefix) and not os.path.isabs(below)
    return below if is_below else os.path.join(os.getcwd(), folder)
