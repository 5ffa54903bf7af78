"""CSV files: lists of images or texts with the columns `path` or `text` and `label`, or a column of labels beside others of
numbers, the features. All may have a column `split`. `csv_tables` reads the file.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import (
    ROLES,
    SPLIT_WORDS,
    CsvRow,
    DataSource,
    LevelledFileOptions,
    Pictures,
    Table,
    array_table,
    is_missing,
    levelled,
    mark_of,
    named_sets,
    open_index,
    parted_labels,
    picture_table,
    read_csv,
    set_classes,
    split_words,
    text_table,
    tidy_names,
)
from dmlcore.errors import DataError
from dmlcore.files import expanded

_COLUMNS = ("path", "text", "label", "labels", "split")


class Manifest(DataSource):
    """Images listed in a CSV file, with paths relative to the file's folder; texts in it; or features in columns of numbers."""

    name = "csv"
    Options = LevelledFileOptions
    reads = "a .csv or .tsv with label and path, text or features"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .csv or .tsv."""
        return path.suffix.lower() in (".csv", ".tsv") and not path.is_dir()

    def load(self) -> Table:
        """Read the features or the texts; or the list, find the images and read as many as fit in memory.

        Raises:
            DataError: no such file, a damaged one, a missing column, an unknown part of a split, more than half of the images
                missing, features that are no numbers.
        """
        if not self.options.path:
            raise DataError("the data 'csv' needs a path: --data FILE.csv, or --csv.path FILE.csv")
        file = expanded(self.options.path)
        folder, levels = file.parent, self.options.levels
        index = open_index(self, str(file), {"levels": list(levels)})
        if not index.is_known:
            columns, rows = read_csv(file, (*_COLUMNS, "official_split"))
            if levels:
                _check_columns(columns, file, levels)
            features = _feature_columns(columns, rows, levels)
            if features:
                return self._features(file, columns, features, rows)
            has_texts = "text" in columns and "path" not in columns
            listed = self._listed(file, columns, rows, has_texts=has_texts)
            if has_texts:
                table = text_table(list(listed.paths), listed.labels, listed.class_names, split=listed.split)
                table.label_sets, table.label_names, table.levels = listed.label_sets, listed.label_names, listed.levels
                table.skipped = [*listed.notes, *table.skipped]
                table.has_labels = table.class_names != [""]
                return table
            index.learn(listed, _start(folder))
            del rows, listed  # of very many files much memory
        return picture_table(self, index, str(folder), called=_start(folder), levels=levels)

    def _listed(self, file: Path, columns: list[str], table: Sequence[CsvRow], *, has_texts: bool) -> Pictures:
        """The images of a list that exist; or its texts, in the place of paths."""
        levels = self.options.levels
        rows, notes = _read(file, columns, table, self.needs_labels, has_texts=has_texts, levels=levels)
        marks = {str(file): mark_of(str(file))}
        if not has_texts:
            marks |= {folder: mark_of(folder) for folder in dict.fromkeys(os.path.dirname(path) for path, _, _ in rows)}
            rows, notes = _existing(rows, notes, file)
        samples: Sequence[str] = [sample for sample, _, _ in rows]
        has_sets = _label_column(columns) == "labels"
        sets = named_sets([parted_labels(label) for _, label, _ in rows]) if has_sets else None
        label_sets, groups = None, dict[str, list[str]]()
        if sets is not None:
            labels, class_names, label_sets = set_classes(sets.sets, sets.names)
            remarks = sets.notes
        else:
            tidied, remarks = tidy_names(label for _, label, _ in rows)
            class_names = sorted(set(tidied.values()))
            number = {name: label for label, name in enumerate(class_names)}
            labels = np.array([number[tidied[label]] for _, label, _ in rows], dtype=np.int64)
        if levels:
            if sets is not None:
                raise DataError(f"levels are for one label per sample, but those of '{file}' have several")
            texts = _levels_of(samples, table, levels, "text" if has_texts else "path", file.parent)
            labels, class_names, groups, more = levelled(labels, class_names, texts, f"'{file}'")
            remarks = [*remarks, *more]
        return Pictures(
            paths=samples,
            labels=labels,
            class_names=class_names,
            split=split_words([part for _, _, part in rows], f"'{file}'") if any(part for _, _, part in rows) else None,
            levels=groups,
            label_sets=label_sets,
            label_names=[] if sets is None else sets.names,
            notes=[*notes, *remarks],
            marks=marks,
        )

    def _features(self, file: Path, columns: list[str], features: list[str], rows: Sequence[CsvRow]) -> Table:
        """A table of the columns of numbers."""
        label = _label_column(columns)
        if self.needs_labels:
            _check_columns(columns, file, (label,))
        x = np.empty((len(rows), len(features)), dtype=np.float32)
        for number, row in enumerate(rows):
            x[number] = [_number(row, name, file) for name in features]
        arrays = {"x": x}
        for name, column in (("y", label), ("split", "split"), ("official_split", "official_split")):
            if column in columns:
                arrays[name] = np.array([row.values[column] for row in rows])
        arrays |= {name: np.array([row.values[name] for row in rows]) for name in self.options.levels}
        sets = named_sets([parted_labels(str(text)) for text in arrays.pop("y")]) if label == "labels" else None
        table = array_table(arrays, f"'{file}'", self.options, needs_labels=self.needs_labels, sets=sets)
        unused = [name for name in columns if name not in (*_COLUMNS, "official_split", *features, *self.options.levels)]
        if unused:
            table.skipped.insert(0, f"columns not used, since they hold no numbers: {', '.join(unused)}")
        return table


def _start(folder: Path) -> str:
    """What the paths of files in a folder begin with."""
    return "" if folder == Path() else str(folder)


def _label_column(columns: list[str]) -> str:
    """`label`, or `labels` in a file that has only this column: several labels of a sample, with semicolons between them."""
    return "labels" if "labels" in columns and "label" not in columns else "label"


def _levels_of(
    samples: list[str], rows: Sequence[CsvRow], levels: tuple[str, ...], column: str, folder: Path
) -> dict[str, list[str]]:
    """The coarser labels of samples, by the first row that each stands in."""
    first: dict[str, CsvRow] = {}
    for row in rows:
        first.setdefault(row.values[column] if column == "text" else str(folder / row.values[column]), row)
    return {level: [first[sample].values[level] for sample in samples] for level in levels}


def _feature_columns(columns: list[str], rows: Sequence[CsvRow], levels: tuple[str, ...]) -> list[str]:
    """The columns of a file without paths and texts that begin with a number; none where it is to be a list."""
    if "path" in columns or "text" in columns or not rows:
        return []
    return [name for name in columns if name not in (*_COLUMNS, "official_split", *levels) and _is_number(rows[0].values[name])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python takes within numbers


def _number(row: CsvRow, name: str, file: Path) -> float:
    text = row.values[name]
    number = float(text) if _is_number(text) else math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise DataError(f"line {row.line} of '{file}': '{name}' is '{text}', but features are numbers of 32 bits")
    return number


def _existing(rows: list[tuple[str, str, str]], notes: list[str], file: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The rows whose images exist, and the notes with one about the others."""
    missing = [path for path, _, _ in rows if not os.path.isfile(path)]
    if 2 * len(missing) > len(rows):
        raise DataError(
            f"{len(missing)} of {len(rows)} images in '{file}' do not exist, or are no files, the first is '{missing[0]}'."
            f" Paths are relative to '{file.parent}'"
        )
    if missing:
        gone = set(missing)
        rows = [row for row in rows if row[0] not in gone]
        names = ", ".join(f"'{os.path.relpath(path, file.parent)}'" for path in missing[:3])
        names += ", ..." if len(missing) > 3 else ""
        notes.append(f"{len(missing)} listed images do not exist, or are no files, and were skipped: {names}")
    return rows, notes


def _read(
    file: Path,
    columns: list[str],
    table: Sequence[CsvRow],
    needs_labels: bool,
    *,
    has_texts: bool,
    levels: tuple[str, ...] = (),
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Path or text, label and part of every row, and what the user should know. Labels are empty where there is no such
    column."""
    sample, noun = ("text", "text") if has_texts else ("path", "image")
    notes = _check_columns(columns, file, (sample, _label_column(columns)) if needs_labels else (sample,), levels)
    column = _label_column(columns)
    has_labels = column in columns
    part = "split" if "split" in columns else "official_split"
    rows: list[tuple[str, str, str]] = []
    seen: dict[str, int] = {}
    words: dict[str, str] = {}  # labels and parts, each once in memory
    incomplete = repeated = conflicting = 0
    for row in table:
        path, label, split = row.values[sample], row.values.get(column, ""), row.values.get(part, "")
        if not path or (has_labels and is_missing(label)):
            incomplete += 1
            continue
        whole = path if has_texts else str(file.parent / path)
        if whole in seen:
            earlier = seen[whole]
            if rows[earlier][1] != label:
                conflicting += 1
            elif {SPLIT_WORDS.get(word.lower()) for word in (rows[earlier][2], split)} == set(ROLES):
                rows[earlier] = (whole, label, "test")  # a query that is in the gallery too
            else:
                repeated += 1
            continue
        seen[whole] = len(rows)
        rows.append((whole, words.setdefault(label, label), words.setdefault(split, split)))
    for count, what in (
        (incomplete, f"without a {sample} or a label (empty or nan)"),
        (repeated, "that repeat an earlier one"),
        (conflicting, f"that give an earlier {noun} a second label"),
    ):
        if count:
            notes.append(f"{count} rows {what} were skipped")
    if not rows:
        raise DataError(f"'{file}' lists no {noun}s")
    return rows, notes


def _check_columns(columns: list[str], file: Path, needed: tuple[str, ...], levels: tuple[str, ...] = ()) -> list[str]:
    if not columns:
        raise DataError(f"'{file}' is empty: the first line must name the columns path,label[,split] or text,label[,split]")
    for column in needed:
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            hint = f" Did you mean to name '{near[0]}' so?" if near else ""
            raise DataError(f"'{file}' has no column '{column}'; it has {', '.join(columns)}.{hint}")
    unused = (*(("text",) if "path" in needed else ("path",)), *(("labels",) if "label" in columns else ()))
    unknown = [name for name in columns if name not in (*_COLUMNS, "official_split", *levels) or name in unused]
    if not unknown:
        return []
    near = [name for name in unknown if difflib.get_close_matches(name.lower(), ["split"], cutoff=0.6)]
    hint = f" (if '{near[0]}' holds the split, name it 'split')" if near and "split" not in columns else ""
    return [f"columns not used: {', '.join(unknown)}{hint}"]


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Manifest]
