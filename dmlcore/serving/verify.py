"""Verification with a model: pairs out of data or out of a file of pairs, the figures, and the threshold that is kept."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmlcore.errors import DataError
from dmlcore.evaluation import verification
from dmlcore.evaluation.verification import AllPairs
from dmlcore.files import expanded
from dmlcore.serving.entries import Entries, of_arrays, unit
from dmlcore.serving.model import Model

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


def read_pairs(path: str | Path, root: str | Path | None = None) -> Pairs:
    """Pairs out of a file.

    Args:
        path: a .csv with the columns `first`, `second`, `same` (1 or 0) and perhaps `fold`; or a text file in the layout of
            Labeled Faces in the Wild: a line `FOLDS PAIRS` or `PAIRS`, then `NAME 1 2` and `NAME 1 OTHER 2` for the files
            `NAME/NAME_0001.jpg`.
        root: the folder that paths start from; None: that of the file.

    Raises:
        DataError: there is no such file, or a line of it cannot be read.
    """
    path = expanded(path)
    base = expanded(root) if root is not None else path.parent
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
    names = [[str(base / name) if (base / name).exists() else name for name in side] for side in (first, second)]
    fold = None if None in folds else np.unique(np.array(folds), return_inverse=True)[1]
    return Pairs(names[0], names[1], np.array(same, dtype=bool), fold)


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
    return rows


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04}.jpg"


def verify_entries(entries: Entries, *, far: float | None = 1e-3, seed: int = 0) -> dict[str, Any]:
    """The figures of all pairs of entries, and the threshold for a rate of false accepts.

    Args:
        entries: with labels.
        far: wanted rate; None: no threshold is looked for.
        seed: of the pairs of the accuracy, and of the interval.

    Raises:
        DataError: no labels, or too few pairs.
    """
    names = entries.labels("verification")
    _, labels = np.unique(np.array(names), return_inverse=True)
    pairs = AllPairs(torch.from_numpy(np.ascontiguousarray(entries.vectors)), labels)
    curve = pairs.curve()
    scores, same, fold = pairs.balanced(seed)
    result = {
        "samples": len(pairs.labels),
        "classes": len(pairs.sizes),
        **verification.summary(curve),
        **({} if not len(scores) else verification.accuracy_in_folds(scores, same, fold)),
        "notes": [*entries.notes, *([pairs.note] if pairs.note else [])],
        "curve": curve.points(),
    }
    if far is not None:
        result["threshold"] = pairs.threshold(far, seed=seed)
    return result


def verify_pairs(pairs: Pairs, model: Model) -> dict[str, Any]:
    """The figures of given pairs.

    Args:
        pairs: whose samples the model can embed.
        model: of pictures or texts.

    Raises:
        DataError: a sample cannot be read, or all pairs are alike.
    """
    names = list(dict.fromkeys([*pairs.first, *pairs.second]))
    if model.kind not in ("images", "texts"):
        raise DataError(f"a file of pairs names pictures or texts, but {model.name} takes {model.kind}")
    place = {name: number for number, name in enumerate(names)}
    entries = of_arrays(unit(model.encode(names)), paths=names)
    left, right = [np.array([place[name] for name in side]) for side in (pairs.first, pairs.second)]
    scores = verification.similarities(torch.from_numpy(entries.vectors), left, right)
    fold = pairs.fold
    if fold is None:  # in turn, each kind of pair by itself
        fold = np.empty(len(scores), dtype=np.int64)
        for kind in (pairs.same, ~pairs.same):
            fold[kind] = np.arange(int(kind.sum())) % verification.FOLDS
    curve = verification.curve_of_pairs(scores, pairs.same)
    return {
        "samples": len(names),
        **verification.summary(curve),
        **verification.accuracy_in_folds(scores, pairs.same, fold),
        "notes": [],
        "curve": curve.points(),
    }
