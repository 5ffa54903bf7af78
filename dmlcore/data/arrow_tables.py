"""From a table of Arrow to a table of samples: which columns hold labels, images and features. pyarrow is imported only when
there is such a table, and where it comes from is in the sources.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data.array_tables import finite_features, named_classes, present_labels
from dmlcore.data.class_names import is_missing
from dmlcore.data.encoded import BytesImages, PathImages
from dmlcore.data.image_tables import PixelOptions, image_table
from dmlcore.data.indexed_datasets import LABELS, SAMPLES
from dmlcore.data.levels import LevelOptions, levelled
from dmlcore.data.multi_label import NamedSets, labelled_rows, named_sets, set_classes, sets_of_matrix
from dmlcore.data.part_words import SPLIT_WORDS, split_words
from dmlcore.data.sources import Table
from dmlcore.data.stores import FeatureStore
from dmlcore.errors import DataError, suggestion
from dmlcore.files import writable_text

_PATHS = ("path", "image_path", "file_name", "filename", "file")
_SPLITS = ("split", "official_split")
_LISTS = ("numbers", "texts")  # kinds of columns of lists
_NAMED = 8  # columns named in a message


@dataclass(frozen=True)
class ColumnOptions(LevelOptions, PixelOptions):
    """Options of every source of tables of columns."""

    label: str | None = None
    """The column of labels (default: `label`, `labels`, `y`, `class`, `target` or the like)."""
    image: str | None = None
    """The column of images, as bytes or as paths (default: one of bytes, or called `image`, `path` or the like)."""
    features: tuple[str, ...] | None = None
    """The columns of features, separated by commas: one of lists, or several of numbers (default: the one of lists, else all
    numbers)."""


def pyarrow() -> Any:
    """The package.

    Raises:
        DataError: it is not installed; the message has the command.
    """
    try:
        for module in ("pyarrow.compute", "pyarrow.ipc", "pyarrow.parquet"):
            importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"tables of Parquet and Arrow need the package pyarrow ({error}). Run `pip install pyarrow`") from None
    return importlib.import_module("pyarrow")


def joined_parts(tables: Mapping[str, Any], where: str) -> tuple[Any, np.ndarray]:
    """One table of several that are called like the parts of a split, and the part of each row.

    Raises:
        DataError: another name, or columns that differ.
    """
    arrow = pyarrow()
    for word in tables:
        if word.lower() not in SPLIT_WORDS:
            raise DataError(f"{where} have the part '{word}'; parts are called train, validation, test")
    try:
        table = arrow.concat_tables(list(tables.values()))
    except arrow.ArrowException as error:
        raise DataError(f"the parts of {where} have different columns: {' '.join(str(error).split())}") from None
    return table, np.concatenate([np.full(len(part), SPLIT_WORDS[word.lower()]) for word, part in tables.items()])


def arrow_table(
    table: Any,
    where: str,
    options: ColumnOptions,
    *,
    folder: Path | None = None,
    class_names: Sequence[str] | None = None,
    split: np.ndarray | None = None,
    needs_labels: bool = True,
    image_size: int | None = None,
    default_image_size: int = 64,
) -> Table:
    """A table of images or features out of the columns of a `pyarrow.Table`.

    Args:
        table: with a column of labels (whole numbers or text, or lists of them), and one of images (bytes, paths, or structs of
            both as Hugging Face writes them), one of lists of numbers, or several of numbers. A column `split` is respected.
        where: what it is, for messages.
        options: which columns, and how images are augmented and kept.
        folder: that paths are relative to. None: the working folder.
        class_names: of whole numbers 0..C - 1. None: they are taken from the table where Hugging Face wrote them.
        split: text [N], the part of each row. None: a column may say it.
        needs_labels: refuse a table without labels.
        image_size, default_image_size: as for `image_table`.

    Raises:
        DataError: a column is missing, or holds something else.
    """
    if not len(table):
        raise DataError(f"{where} has no rows")
    columns = _Columns(table, where, options, needs_labels)
    notes = columns.notes()
    has_label = np.ones(len(table), dtype=bool)
    sets = None
    if columns.label is not None and _kind(table.column(columns.label).type) in _LISTS:
        listed = class_names if class_names is not None else _listed_names(table, columns.label)
        sets = _sets_of(table.column(columns.label), where, columns.label, listed)
        labelled, remarks = labelled_rows(sets, len(table), where, columns.label)
        labels, names, class_sets = set_classes(sets.sets.select(labelled), sets.names)
        has_label = np.isin(np.arange(len(table)), labelled)
        notes += remarks
    elif columns.label is None:
        labels, names = np.zeros(len(table), dtype=np.int64), [""]
    else:
        y, has_label = _labels_of(table.column(columns.label), where, columns.label)
        listed = class_names if class_names is not None else _listed_names(table, columns.label)
        labels, names, remarks = named_classes(y, np.array(listed) if listed else None, where)
        notes += remarks
    if split is None and columns.split is not None:
        words = [str(word).strip() if word is not None else "" for word in _values(table.column(columns.split), where)]
        split = split_words(words, where)
    rows = np.flatnonzero(has_label)
    if len(rows) < len(table) and sets is None:
        notes.append(f"{len(table) - len(rows)} rows without a label (empty or nan) were left out")
    split = None if split is None else split[rows]
    levels: dict[str, list[str]] = {}
    if options.levels and columns.label is not None:
        if sets is not None:
            raise DataError(f"levels are for one label per sample, but those of {where} have several")
        coarser = {name: _values(table.column(name), where) for name in options.levels}
        texts = {name: ["" if some[row] is None else str(some[row]) for row in rows] for name, some in coarser.items()}
        labels, names, levels, remarks = levelled(labels, names, texts, where)
        notes += remarks
    if columns.image is not None:
        column = table.column(columns.image)
        images = _images_of(column, where, columns.image, folder).select(rows)
        about: dict[str, Any] = {"levels": levels, "image_size": image_size, "default_image_size": default_image_size}
        if sets is not None:
            about |= {"label_sets": class_sets, "label_names": sets.names}
        result = image_table(images, labels, names, options, where, split=split, **about)
    else:
        values = finite_features(_features_of(table, columns.features, where), where, "features")[rows]
        result = Table("features", FeatureStore(values), labels, names, (values.shape[1],), split)
        result.sample_names = [str(row) for row in rows] if len(rows) < len(table) else None
        result.levels = levels
        if sets is not None:
            result.label_sets, result.label_names = class_sets, sets.names
    result.skipped = notes + result.skipped
    result.has_labels = columns.label is not None
    return result


class _Columns:
    """Which columns of a table are what.

    Attributes:
        label, image, features, split: names of columns.
    """

    def __init__(self, table: Any, where: str, options: ColumnOptions, needs_labels: bool) -> None:
        self._names, self._where = list(table.column_names), where
        twice = next((name for name in self._names if self._names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{where} has the column '{writable_text(twice)}' twice: rename or remove one of them")
        kinds = {name: _kind(table.schema.field(name).type) for name in self._names}
        self.label = self._given(options.label) or self._first(LABELS)
        if self.label is None and needs_labels:
            raise DataError(f"{where} has no column of labels; {self._has()}. Name it by the option `label`")
        self.split = next((name for name in _SPLITS if name in self._names), None)
        self._levels = [self._given(name) for name in options.levels]
        rest = {name: kind for name, kind in kinds.items() if name not in (self.label, self.split, *self._levels)}
        self.image = self._given(options.image)
        self.features = [self._given(name) or "" for name in options.features or ()]
        if self.image is not None and kinds[self.image] not in ("image", "text"):
            raise DataError(f"the column '{self.image}' of {where} holds {kinds[self.image]}, but images are bytes or paths")
        if self.image is None and not self.features:
            pictures = [name for name, kind in rest.items() if kind == "image"]
            named = self._first(SAMPLES[:2]) or self._first(_PATHS)
            if pictures:
                self.image = next((name for name in SAMPLES if name in pictures), pictures[0])
            elif named in rest and rest[named] == "text":
                self.image = named
        if self.image is None and not self.features:
            lists = [name for name, kind in rest.items() if kind == "numbers"]
            single = [name for name, kind in rest.items() if kind == "number"]
            self.features = [next((name for name in SAMPLES if name in lists), lists[0])] if lists else single
        if self.image is None and not self.features:
            raise DataError(f"{where} has no column of images or numbers beside its labels; {self._has()}")

    def notes(self) -> list[str]:
        used = (self.label, self.split, self.image, *self.features, *self._levels)
        unused = [name for name in self._names if name not in used]
        return [f"columns not used: {_listed(unused)}"] if unused else []

    def _given(self, name: str | None) -> str | None:
        if name is not None and name not in self._names:
            raise DataError(f"{self._where} has no column '{name}'.{suggestion(name, self._names)}")
        return name

    def _first(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self._names), None)

    def _has(self) -> str:
        return f"it has {_listed(self._names)}" if self._names else "it has none"


def _listed(names: list[str]) -> str:
    return ", ".join(writable_text(name) for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _kind(kind: Any) -> str:
    """What a type of Arrow means here: `image`, `text`, `number`, `numbers`, or the type's own name."""
    types = pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "image"
    if types.is_struct(kind):
        return "image" if "bytes" in [kind.field(place).name for place in range(kind.num_fields)] else str(kind)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return "number"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return {"number": "numbers", "text": "texts"}.get(_kind(kind.value_type), str(kind))
    return str(kind)


def _values(column: Any, where: str) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise DataError(f"{where} holds text that is no UTF-8") from None


def _labels_of(column: Any, where: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels that are there, and bool [N]: which rows have one."""
    types, kind = pyarrow().types, _kind(column.type)
    if kind not in ("text", "number") or (kind == "number" and types.is_dictionary(column.type)):
        raise DataError(f"the column '{name}' of {where} holds {column.type}, but labels are whole numbers or text")
    if kind == "text":
        texts = _values(column, where)
        has_label = np.array([text is not None and not is_missing(text) for text in texts])
        if not has_label.any():
            raise DataError(f"'{name}' in {where} has no label: all are empty or nan")
        return np.array([text for text, there in zip(texts, has_label, strict=True) if there]), has_label
    is_valid = column.is_valid().to_numpy()
    if not is_valid.any():
        raise DataError(f"'{name}' in {where} has no label: all are empty or nan")
    y, has_label = present_labels(column.drop_null().to_numpy(), int(is_valid.sum()), where, name)
    is_valid[is_valid] = has_label
    return y, is_valid


def _sets_of(column: Any, where: str, name: str, names: Sequence[str] | None) -> NamedSets:
    """The labels of a column of lists: of labels, or of bools that say of each label whether it is there."""
    lists = _values(column, where)
    if pyarrow().types.is_boolean(column.type.value_type):
        if len({len(entry or ()) for entry in lists}) > 1:
            raise DataError(f"the lists of '{name}' in {where} hold bools, one for each label, but differ in length")
        return sets_of_matrix(np.array(lists, dtype=bool), np.array(names) if names else None, where, name)
    return named_sets(lists, names, f"'{name}' in {where}")


def _images_of(column: Any, where: str, name: str, folder: Path | None) -> PathImages | BytesImages:
    """The images of a column. Those that it has by their paths only are files."""
    if _kind(column.type) == "image" and not pyarrow().types.is_struct(column.type):
        return BytesImages(_Bytes(column))
    if _kind(column.type) == "image":
        fields = {column.type.field(place).name: place for place in range(column.type.num_fields)}
        flat = column.flatten()
        if flat[fields["bytes"]].null_count < len(column) or "path" not in fields:
            return BytesImages(_Bytes(flat[fields["bytes"]]))
        column = flat[fields["path"]]
    base = folder or Path()
    paths = [os.path.join(base, path) if path else "" for path in _values(column, where)]
    gone = [path for path in paths if not os.path.isfile(path)]
    if 2 * len(gone) > len(paths):
        raise DataError(
            f"{len(gone)} of {len(paths)} images of {where}, column '{name}', do not exist, or are no files, the first is"
            f" '{writable_text(gone[0])}'. Paths are relative to '{base}'"
        )
    return PathImages(paths, str(base))


class _Bytes(Sequence[bytes]):
    """A column of bytes by number; nothing where it is empty, which no image is."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].as_py() or b""


def _features_of(table: Any, names: list[str], where: str) -> np.ndarray:
    """Numbers [N, F]. What is missing is NaN."""
    arrow, parts = pyarrow(), []
    for name in names:
        column = table.column(name)
        kind = _kind(column.type)
        if kind not in ("number", "numbers"):
            raise DataError(f"the column '{name}' of {where} holds {column.type}, but features are numbers")
        if kind == "number":
            parts.append(column.cast(arrow.float32(), safe=False).to_numpy()[:, None])
            continue
        lengths = np.unique(arrow.compute.list_value_length(column).fill_null(-1).to_numpy())
        if len(lengths) > 1 or lengths[0] < 1:
            shown = ", ".join(map(str, lengths[:_NAMED].tolist())).replace("-1", "none")
            raise DataError(f"the lists of '{name}' in {where} have the lengths {shown}, but must all have the same")
        flat = arrow.compute.list_flatten(column)
        parts.append(flat.cast(arrow.float32(), safe=False).to_numpy().reshape(len(table), -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)


def _listed_names(table: Any, label: str) -> list[str] | None:
    """The names of the classes as Hugging Face writes them beside a table's columns; None: there are none."""
    try:
        about = json.loads((table.schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][label]
        names = (feature if "names" in feature else feature["feature"])["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None
