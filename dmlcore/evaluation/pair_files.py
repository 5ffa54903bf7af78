"""Files of pairs of samples: a table, or the layout of Labeled Faces in the Wild. What is measured of pairs is in
`verification.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dmlcore.errors import DataError
from dmlcore.files import expanded

_SEVERAL = -2  # in place of a place: two samples are called so
_TRUE, _FALSE = {"1", "true", "yes", "same"}, {"0", "false", "no", "different"}


@dataclass(frozen=True)
class Pairs:
    """Pairs of samples that a file names.

    Attributes:
        first, second: names of the samples: paths of files, or texts.
        same: bool [P], whether a pair is of one class.
        fold: int64 [P], or None where the file has none.
    """

    first: list[str]
    second: list[str]
    same: np.ndarray
    fold: np.ndarray | None

    def below(self, root: Path) -> Pairs:
        """The same pairs, with files of this folder named by their paths; other names stay."""
        first, second = [
            [str(root / name) if (root / name).exists() else name for name in side] for side in (self.first, self.second)
        ]
        return replace(self, first=first, second=second)

    def places(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where the samples of each pair stand among named ones: int64 [P] twice, -1 for one that is not there.

        A name in the file may be the end of a longer one: `Ada/Ada_0001.jpg` means `/photos/Ada/Ada_0001.jpg`.

        Raises:
            DataError: a name of the file is the end of two names.
        """
        asked = {name: _parts(name) for name in dict.fromkeys([*self.first, *self.second])}
        lengths = {len(parts) for parts in asked.values()}
        ends: dict[tuple[str, ...], int] = {}
        for place, name in enumerate(names):
            parts = _parts(name)
            for length in lengths:
                if length <= len(parts):
                    end = parts[-length:]
                    ends[end] = place if end not in ends else _SEVERAL
        for name, parts in asked.items():
            if ends.get(parts) == _SEVERAL:
                raise DataError(f"'{name}' of the pairs means several samples; name their folders too")
        found = {name: ends.get(parts, -1) for name, parts in asked.items()}
        left, right = [np.array([found[name] for name in side], dtype=np.int64) for side in (self.first, self.second)]
        return left, right

    def folds(self, count: int) -> np.ndarray:
        """The fold of each pair, int64 [P]: that of the file, or so many in turn, for each kind of pair by itself."""
        if self.fold is not None:
            return self.fold
        fold = np.empty(len(self.same), dtype=np.int64)
        for kind in (self.same, ~self.same):
            fold[kind] = np.arange(int(kind.sum())) % count
        return fold

    def among(self, is_there: np.ndarray) -> Pairs:
        """Some of the pairs.

        Args:
            is_there: bool [P].
        """
        first, second = [
            [name for name, stays in zip(side, is_there, strict=True) if stays] for side in (self.first, self.second)
        ]
        return Pairs(first, second, self.same[is_there], None if self.fold is None else self.fold[is_there])


def read_pairs(path: str | Path, root: str | Path | None = None) -> Pairs:
    """Pairs out of a file.

    Args:
        path: a .csv with the columns `first`, `second`, `same` (1 or 0) and perhaps `fold`; or a text file in the layout of
            Labeled Faces in the Wild: a line `FOLDS PAIRS` or `PAIRS`, which counts those of each kind, then `NAME 1 2` and
            `NAME 1 OTHER 2` for the files `NAME/NAME_0001.jpg`.
        root: the folder that paths start from; None: that of the file.

    Returns:
        The pairs, whose files are named by their paths where they are there.

    Raises:
        DataError: there is no such file, or a line of it cannot be read.
    """
    path = expanded(path)
    return read_names(path).below(expanded(root) if root is not None else path.parent)


def read_names(path: str | Path) -> Pairs:
    """Pairs out of a file as `read_pairs`, with the names that stand there."""
    path = expanded(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is no text in UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}") from error
    rows = _rows_of_csv(text, path) if path.suffix.lower() in (".csv", ".tsv") else _rows_of_lfw(text, path)
    if not rows:
        raise DataError(f"'{path}' holds no pairs")
    first, second, same, folds = zip(*rows, strict=True)
    fold = None if None in folds else np.unique(np.array(folds), return_inverse=True)[1]
    if fold is not None and fold.max() == 0:
        raise DataError(f"'{path}' has one fold, but a threshold is chosen on other folds: give two, or leave folds out")
    return Pairs(list(first), list(second), np.array(same, dtype=bool), fold)


_Row = tuple[str, str, bool, str | None]


def _rows_of_csv(text: str, path: Path) -> list[_Row]:
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    for name in ("first", "second", "same"):
        if name not in columns:
            raise DataError(f"'{path}' has no column '{name}'; it needs first,second,same and may have fold")
    rows: list[_Row] = []
    for number, row in enumerate(reader, 2):
        word = (row[columns["same"]] or "").strip().lower()
        if word not in _TRUE | _FALSE:
            raise DataError(f"line {number} of '{path}' says '{word}' for same, but must say 1 or 0")
        fold = row[columns["fold"]] if "fold" in columns else None
        rows.append((row[columns["first"]] or "", row[columns["second"]] or "", word in _TRUE, fold))
    return rows


def _rows_of_lfw(text: str, path: Path) -> list[_Row]:
    lines = [line.split("\t") if "\t" in line else line.split() for line in text.splitlines()]
    if not lines or not 1 <= len(lines[0]) <= 2 or not all(word.isdigit() for word in lines[0]):
        raise DataError(f"'{path}' is neither a .csv of pairs nor in the layout of LFW, whose first line is FOLDS PAIRS")
    each = int(lines[0][-1])
    rows: list[_Row] = []
    for number, words in enumerate(lines[1:], 2):
        if not words:
            continue
        fold = str(len(rows) // (2 * each)) if len(lines[0]) == 2 and each else None
        if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
            rows.append((_lfw(words[0], words[1]), _lfw(words[0], words[2]), True, fold))
        elif len(words) == 4 and words[1].isdigit() and words[3].isdigit():
            rows.append((_lfw(words[0], words[1]), _lfw(words[2], words[3]), False, fold))
        else:
            raise DataError(f"line {number} of '{path}' is no pair: expected NAME 1 2, or NAME 1 OTHER 2")
    folds = int(lines[0][0]) if len(lines[0]) == 2 else 1
    if rows and len(rows) != 2 * each * folds:  # a file that was cut would have other folds, and other figures
        announced = f"{folds} folds of {each} pairs of each kind" if len(lines[0]) == 2 else f"{each} pairs of each kind"
        raise DataError(f"'{path}' announces {announced}, which is {2 * each * folds} pairs, but holds {len(rows)}")
    return rows


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04}.jpg"


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
