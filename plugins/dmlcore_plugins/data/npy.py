"""An array in an `.npy` file with its labels in another one beside it. Never reads pickled objects."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import DataSource, ImageOptions, Table, array_table
from dmlcore.errors import DataError
from dmlcore.files import expanded, writable_text
from dmlcore_plugins.data.npz import valid_array

_LARGE = 2**28  # bytes
_BESIDE = {"y": ("y", "labels"), "class_name": ("class_name", "class_names"), "split": ("split",)}
"""Further arrays, and what their files are called behind the name of the first and a `_` or `.`, or instead of it."""


class ArrayPair(DataSource):
    """An `.npy` file of features or images, with labels in a second one: `y.npy` beside `x.npy`, or `birds_y.npy` or
    `birds_labels.npy` beside `birds.npy`. In the same way there may be `class_name.npy` and `split.npy`.
    """

    name = "npy"
    Options = ImageOptions
    reads = "an x.npy with y.npy"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .npy."""
        return path.suffix.lower() == ".npy" and not path.is_dir()

    def load(self) -> Table:
        """Read the files.

        Raises:
            DataError: no such file, no labels beside it, objects, wrong shapes, numbers that are not finite.
        """
        if not self.options.path:
            raise DataError("the data 'npy' need a path: --data x.npy, or --npy.path x.npy")
        file = expanded(self.options.path)
        arrays = {"x": _read(file)}
        for name, words in _BESIDE.items():
            beside = next((path for path in _places(file, words) if path.is_file()), None)
            if beside is not None:
                arrays[name] = _read(beside)
        if "y" not in arrays and self.needs_labels:
            looked_for = ", ".join(f"'{path.name}'" for path in _places(file, _BESIDE["y"]))
            raise DataError(f"there are no labels beside '{file}': none of {writable_text(looked_for)}")
        return array_table(arrays, f"'{file}'", self.options, needs_labels=self.needs_labels)


def _places(file: Path, words: tuple[str, ...]) -> list[Path]:
    """Where an array may lie that belongs to a file."""
    stem = file.name[: -len(".npy")]
    own = [f"{stem}{mark}{word}.npy" for word in words for mark in ("_", ".")]
    general = [f"{word}.npy" for word in words]
    if stem.lower() in ("x", "features", "images", "data", "embeddings"):
        return [file.parent / name for name in [*own, *general]]
    begins = stem.lower().startswith("x")  # x_train.npy has y_train.npy
    return [file.parent / name for name in [*own, *([f"{word}{stem[1:]}.npy" for word in words] if begins else [])]]


def _read(file: Path) -> np.ndarray:
    try:
        if not os.path.isfile(file):
            raise DataError(f"there is no file '{file}'")
        # A large array stays on the disk: embedding reads it once, and training reads rows of it.
        mode = "r" if os.path.getsize(file) > _LARGE else None
        array = np.load(file, mmap_mode=mode, allow_pickle=False)
        return valid_array(array)
    except DataError:
        raise
    except Exception as error:  # numpy raises nearly every type for a damaged file, from TokenError to MemoryError
        text = " ".join(str(error).split())
        if "bject arrays" in text:
            raise DataError(f"'{file}' holds Python objects, which are not read because they can run code") from None
        reason = "it does not begin like one" if "pickle" in text else text or type(error).__name__
        raise DataError(f"'{file}' is no .npy file, or a damaged one: {reason}") from None


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [ArrayPair]
