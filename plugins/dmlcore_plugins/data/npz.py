"""Tables in `.npz` files: feature vectors or images `x` with labels `y`. Never reads pickled objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import DataSource, LevelledOptions, Table, array_table
from dmlcore.errors import DataError
from dmlcore.files import expanded
from dmlcore.seals import check_archive_file

_LAST_CHARACTER = 0x10FFFF


class ArrayFile(DataSource):
    """An `.npz` file with `x` (float [N, F] features, or uint8 [N, H, W] or [N, H, W, C] images) and `y` (labels [N]). It may
    have `class_name` and `class_group` (text [C] for labels 0..C - 1), and `split` or `official_split` (text or 0, 1, 2 per
    sample).
    """

    name = "npz"
    Options = LevelledOptions
    reads = "an .npz with x, y"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .npz."""
        return path.suffix.lower() == ".npz" and not path.is_dir()

    def load(self) -> Table:
        """Read the file.

        Raises:
            DataError: a missing array, objects, wrong shapes, numbers that are not finite.
        """
        if not self.options.path:
            raise DataError("the data 'npz' needs a path: --data FILE.npz, or --npz.path FILE.npz")
        file = expanded(self.options.path)
        arrays = read_arrays(file)
        return array_table(arrays, f"'{file}'", self.options, needs_labels=self.needs_labels)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Raises:
        DataError: no such file, a damaged file, an array of objects.
    """
    name = ""
    try:
        check_archive_file(file)
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                arrays = {}
                for name in opened.files:
                    arrays[name] = valid_array(opened[name])
                return arrays
    except FileNotFoundError:
        raise DataError(f"there is no file '{file}'") from None
    except Exception as error:  # numpy and zipfile raise nearly every type for a damaged file, from TokenError to MemoryError
        if name and "bject arrays" in str(error):
            raise DataError(
                f"'{name}' in '{file}' holds Python objects, which are not read because they can run code."
                f" Save plain numbers or text instead"
            ) from None
        reason = (
            "it does not begin like one" if "pickle" in str(error) else " ".join(str(error).split()) or type(error).__name__
        )
        raise DataError(f"'{file}' is no .npz file, or a damaged one: {reason}") from None
    raise DataError(f"'{file}' is a single array, but x and y are needed: save it with numpy.savez(file, x=..., y=...)")


def valid_array(array: np.ndarray) -> np.ndarray:
    """The array, if it is one whose text is Unicode: numpy takes any four bytes for a character.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError("a part of it is no array")
    if array.dtype.kind == "U" and array.dtype.itemsize:
        characters = np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if (characters > _LAST_CHARACTER).any():
            raise ValueError("its text is no Unicode")
    return array


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [ArrayFile]
