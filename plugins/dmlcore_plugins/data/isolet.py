"""Isolet: spoken letters as 617 acoustic features, in the two files of the UCI repository."""

from __future__ import annotations

import string
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import DataSource, FeatureStore, Table
from dmlcore.errors import DataError
from dmlcore.files import expanded

_FILES = ("isolet1+2+3+4.data", "isolet5.data")
_FEATURES = 617
_PUBLISHED = "Isolet is published at https://archive.ics.uci.edu/dataset/54/isolet"


@dataclass(frozen=True)
class IsoletOptions:
    """Options of Isolet."""

    path: str = ""
    """Folder of `isolet1+2+3+4.data` and `isolet5.data`, unpacked."""


class Isolet(DataSource):
    """Letters spoken by 150 people, 617 features each. A class is a letter. Both files are pooled, as classes are split."""

    name = "isolet"
    Options = IsoletOptions

    def load(self) -> Table:
        """Read both files.

        Raises:
            DataError: a missing file, a row that is damaged.
        """
        if not self.options.path:
            raise DataError(
                f"the data 'isolet' needs a path: --isolet.path DIR, the folder of isolet1+2+3+4.data. {_PUBLISHED}"
            )
        rows = np.concatenate([_read(expanded(self.options.path) / name) for name in _FILES])
        letters = rows[:, _FEATURES].astype(np.int64)
        present, labels = np.unique(letters, return_inverse=True)
        names = [string.ascii_uppercase[letter - 1] for letter in present]
        values = rows[:, :_FEATURES].astype(np.float32)
        return Table("features", FeatureStore(values), labels.astype(np.int64), names, (_FEATURES,))


def _read(file: Path) -> np.ndarray:
    """The rows of a file, float64 `[N, 618]`: features and the letter's number, 1 to 26."""
    if not file.is_file():
        packed = file.with_name(file.name + ".Z")
        raise DataError(f"there is no file '{file}'" + (f": unpack '{packed}' first" if packed.exists() else f". {_PUBLISHED}"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which is refused below
            rows = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' is damaged: {error}") from error
    if rows.shape[0] == 0 or rows.shape[1] != _FEATURES + 1:
        raise DataError(f"'{file}' has {rows.shape[0]} rows of {rows.shape[1]} numbers, but each must have {_FEATURES + 1}")
    letters = rows[:, _FEATURES]
    if not np.isfinite(rows).all() or (letters != letters.round()).any() or letters.min() < 1 or letters.max() > 26:
        raise DataError(f"'{file}' is damaged: numbers that are not finite, or letters that are not 1 to 26")
    return rows


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Isolet]
