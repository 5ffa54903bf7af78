"""MNIST: the original files, in the layout torchvision keeps them in."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import DataSource, PixelStore, ShiftAugmentation, Table
from dmlcore.errors import DataError
from dmlcore.files import expanded

_DIGITS = [str(digit) for digit in range(10)]
SIDE = 28  # pixels
_PARTS = ("train", "t10k")
_PUBLISHED = "MNIST is published at https://yann.lecun.com/exdb/mnist"


@dataclass(frozen=True)
class MnistOptions:
    """Options of MNIST."""

    path: str = ""
    """Folder of the four idx files, packed by gzip or not, or one above `MNIST/raw`."""
    augment: bool = False
    """Shift, turn, slant and scale training images a little."""


class Mnist(DataSource):
    """Handwritten digits, 28 x 28 grey. The 60,000 of training and the 10,000 of test are pooled, as classes are split."""

    name = "mnist"
    Options = MnistOptions

    def load(self) -> Table:
        """Read the four files. Nothing is downloaded.

        Raises:
            DataError: a missing or damaged file.
        """
        if not self.options.path:
            raise DataError(
                f"the data 'mnist' needs a path: --mnist.path DIR, the folder above MNIST/raw of torchvision. {_PUBLISHED}"
            )
        folder = _raw_folder(expanded(self.options.path))
        images, labels = [], []
        for part in _PARTS:
            pixels = read_idx(_file(folder, f"{part}-images-idx3-ubyte"), 3)
            ids = read_idx(_file(folder, f"{part}-labels-idx1-ubyte"), 1)
            if len(pixels) != len(ids):
                raise DataError(f"'{folder}' has {len(pixels)} images of '{part}', but {len(ids)} labels")
            if pixels.shape[1:] != (SIDE, SIDE):
                raise DataError(f"the images of '{part}' in '{folder}' are {pixels.shape[1]} x {pixels.shape[2]}, not 28 x 28")
            images.append(pixels)
            labels.append(ids)
        return digit_table(np.concatenate(images), np.concatenate(labels), self.options.augment, str(folder))


def digit_table(images: np.ndarray, labels: np.ndarray, augment: bool, where: str) -> Table:
    """A table of pixels uint8 `[N, 28, 28]` and digits `[N]`."""
    if len(labels) and labels.max() > 9:
        raise DataError(f"'{where}' has the label {labels.max()}, but MNIST has the digits 0 to 9")
    present, dense = np.unique(labels, return_inverse=True)
    augmentation = ShiftAugmentation() if augment else None
    names = [_DIGITS[digit] for digit in present]
    pixels = np.ascontiguousarray(images)[:, None]  # [N, 1, 28, 28]
    return Table("images", PixelStore(pixels), dense.astype(np.int64), names, pixels.shape[1:], augmentation=augmentation)


def _raw_folder(root: Path) -> Path:
    for folder in (root, root / "MNIST" / "raw", root / "raw"):
        if any(folder.glob("t*-idx?-ubyte*")):
            return folder
    raise DataError(f"'{root}' holds no file of MNIST, such as MNIST/raw/train-images-idx3-ubyte. {_PUBLISHED}")


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"'{folder}' lacks '{name}' (or '{name}.gz')")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Bytes of a file in the idx format, read as it says on the site of MNIST: a magic number, sizes, then the bytes.

    Args:
        path: the file. A name that ends in `.gz` is unpacked.
        dimensions: expected.

    Returns:
        uint8 of that many dimensions.

    Raises:
        DataError: no idx file of unsigned bytes, other dimensions, cut off, or longer than it says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"'{path}' is no idx file of bytes with {dimensions} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content, ">i4", dimensions, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if min(shape) < 0 or len(content) != expected:
        verb = "is cut off" if len(content) < expected else "is longer than it says"
        raise DataError(f"'{path}' {verb}: {len(content):,} bytes instead of {expected:,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Mnist]
