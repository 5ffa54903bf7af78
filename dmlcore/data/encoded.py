"""Encoded images by number, wherever they lie: as files, in the column of a table, in archives. Decoding is in `images`."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

import numpy as np

from dmlcore import progress
from dmlcore.data.path_lists import LazyTexts, PathList
from dmlcore.errors import DataError
from dmlcore.files import writable_text

_ENCODED = "surrogateescape"  # names of files that are no UTF-8
_BLOCK = 16 * 2**10  # bytes of a large image that are looked at, at three places


class EncodedImages(Protocol):
    """Images as they are stored, each of any format, size and colour."""

    def __len__(self) -> int: ...

    def opened(self, row: int) -> str | BinaryIO:
        """What Pillow opens: a path, or the bytes.

        Raises:
            OSError: it is gone.
        """
        ...

    def shown(self, row: int) -> str:
        """A name for messages that also tells it from others, such as a path."""
        ...

    def select(self, rows: np.ndarray) -> EncodedImages:
        """Some of the images, int64 [n], in this order."""
        ...

    def digests(self) -> np.ndarray:
        """A number per image, uint64 [N], by which it is known again wherever it stands.

        Raises:
            DataError: one cannot be read.
        """
        ...


class PathImages:
    """Image files.

    Args:
        paths: one per image.
        where: the folder that paths are shown relative to.
    """

    def __init__(self, paths: Sequence[str], where: str = "") -> None:
        self.paths = paths
        self._where = where

    def __len__(self) -> int:
        return len(self.paths)

    def opened(self, row: int) -> str:
        if not os.path.isfile(self.paths[row]):  # a pipe would be waited for
            raise FileNotFoundError("it does not exist, or is no file")
        return self.paths[row]

    def shown(self, row: int) -> str:
        return writable_text(os.path.relpath(self.paths[row], self._where) if self._where else self.paths[row])

    def select(self, rows: np.ndarray) -> PathImages:
        return PathImages(self._selected(rows), self._where)

    def _selected(self, rows: np.ndarray) -> Sequence[str]:
        paths = self.paths
        return paths.select(rows) if isinstance(paths, PathList) else [str(paths[int(row)]) for row in rows]

    def digests(self) -> np.ndarray:
        return file_digests(self.paths)


class ListedImages(PathImages):
    """Image files that go by their names and sizes: so 10^6 of them are told apart without being read.

    Args:
        paths: one per image.
        where: the folder that their names are relative to.
        sizes: int64 [N], bytes.
    """

    def __init__(self, paths: Sequence[str], where: str, sizes: np.ndarray) -> None:
        super().__init__(paths, where)
        self._sizes = sizes

    def select(self, rows: np.ndarray) -> ListedImages:
        return ListedImages(self._selected(rows), self._where, self._sizes[rows])

    def digests(self) -> np.ndarray:
        start = len(os.path.join(self._where, ""))
        names = (f"{size}/{path[start:]}" for path, size in zip(self.paths, self._sizes, strict=True))
        numbers = (digest(name.encode("utf-8", _ENCODED)) for name in names)
        return np.fromiter(numbers, dtype=np.uint64, count=len(self.paths))


class BytesImages:
    """Images whose bytes are fetched from something by number.

    Args:
        content: has a length, and gives bytes by number.
        rows: int64 [N], which of them. None: all.
    """

    def __init__(self, content: Sequence[bytes], rows: np.ndarray | None = None) -> None:
        self._content = content
        self._rows = np.arange(len(content)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def opened(self, row: int) -> BinaryIO:
        return io.BytesIO(self._content[int(self._rows[row])])

    def shown(self, row: int) -> str:
        return f"row {self._rows[row]}"

    def select(self, rows: np.ndarray) -> BytesImages:
        return BytesImages(self._content, self._rows[rows])

    def digests(self) -> np.ndarray:
        numbers = np.empty(len(self), dtype=np.uint64)
        for row in progress.track(range(len(self)), "taking checksums of images", len(self)):
            content = self._content[int(self._rows[row])]
            numbers[row] = digest(_sampled(io.BytesIO(content), len(content)))
        return numbers


class ShownNames(LazyTexts):
    """The names of very many images, made when they are asked for."""

    def __init__(self, images: EncodedImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def text(self, row: int) -> str:
        return self._images.shown(row)


def file_digests(paths: Sequence[str]) -> np.ndarray:
    """A number per file, uint64 [N], that follows from its length and its bytes: all of them where it is small, else those at
    its beginning, its middle and its end.

    Raises:
        DataError: a file cannot be read.
    """
    digests = np.empty(len(paths), dtype=np.uint64)
    for row, path in enumerate(progress.track(paths, "taking checksums of files", len(paths))):
        try:
            with open(path, "rb") as file:
                digests[row] = digest(_sampled(file, os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise DataError(f"image '{path}' cannot be read: {error.strerror}. Repair or remove it") from error
    return digests


def digest(content: bytes | memoryview) -> int:
    """A number of 64 bits that follows from bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def _sampled(file: BinaryIO, size: int) -> bytes:
    content = size.to_bytes(8, "big")
    if size <= 3 * _BLOCK:
        return content + file.read()
    for place in (0, size // 2, size - _BLOCK):
        file.seek(place)
        content += file.read(_BLOCK)
    return content
