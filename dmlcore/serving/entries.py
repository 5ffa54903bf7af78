"""Embeddings with what identifies each: where indexes, clusters and checks of data get them from. A file that `dmlcore embed`
wrote is read as it is, and other data pass through a model.
"""

from __future__ import annotations

import csv
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data import pyarrow
from dmlcore.errors import ConfigError, DataError, first_line
from dmlcore.files import expanded
from dmlcore.seals import SealError, check_archive_file

SUFFIXES = (".npz", ".npy", ".parquet", ".arrow")
IDENTITY = ("path", "row", "label")
_VECTORS = ("x", "embedding", "embeddings", "vector", "vectors")  # what the array or column of embeddings is called
_LABELS = ("label", "class_name", "y")
MODEL = "model"  # an array without a shape, or an entry of a table's metadata: the fingerprint of the model
_PIECE = 65_536  # rows looked at in one go, to keep temporary memory small


@dataclass(frozen=True)
class Entries:
    """Embeddings in their order.

    Attributes:
        vectors: float32 [N, D], finite. It may lie in a file.
        path: text of each, empty where it has none; or None where no entry has one.
        row: int64 [N], the place of each in its data.
        label: text of each, empty where it has none; or None where no entry has one.
        columns: further values of each, numbers or text [N], by name.
        notes: what the user should know.
        model: fingerprint of the model that embedded them, empty where it is not known.
    """

    vectors: np.ndarray
    path: list[str] | None
    row: np.ndarray
    label: list[str] | None
    columns: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    model: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or 0 in self.vectors.shape:
            raise DataError(
                f"embeddings have the shape {list(self.vectors.shape)}, but must be [N, D] with at least one of each"
            )
        for name, values in self.all_columns().items():
            if len(values) != len(self.vectors):
                raise DataError(f"'{name}' holds {len(values):,} values, but there are {len(self.vectors):,} embeddings")
        bad = [
            start + int(np.flatnonzero(~is_finite)[0])
            for start in range(0, len(self.vectors), _PIECE)
            if not (is_finite := np.isfinite(self.vectors[start : start + _PIECE]).all(1)).all()
        ]
        if bad:
            raise DataError(f"embeddings hold NaN or infinite numbers, first in row {bad[0]}")

    def __len__(self) -> int:
        return len(self.vectors)

    def all_columns(self) -> dict[str, Any]:
        """What identifies the entries and what stands beside, by name, without what no entry has."""
        named = {"path": self.path, "row": self.row, "label": self.label, **self.columns}
        return {name: values for name, values in named.items() if values is not None}

    def labels(self, purpose: str) -> list[str]:
        """The labels.

        Args:
            purpose: what they are for, for the message.

        Raises:
            DataError: an entry has none.
        """
        if self.label is None or "" in self.label:
            some = "some of the" if self.label is not None and any(self.label) else "the"
            raise DataError(f"{purpose} needs labels, but {some} entries have none")
        return self.label


def select(entries: Entries, rows: Sequence[int]) -> Entries:
    """Some of the entries, in this order."""
    return Entries(
        entries.vectors[list(rows)],
        None if entries.path is None else [entries.path[row] for row in rows],
        entries.row[list(rows)],
        None if entries.label is None else [entries.label[row] for row in rows],
        {name: [values[row] for row in rows] for name, values in entries.columns.items()},
        entries.notes,
        entries.model,
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one, float32 [N, D]; a zero vector stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    largest = np.abs(vectors).max(1, keepdims=True)  # so that no square overflows or vanishes
    scaled = vectors / np.where(largest > 0, largest, 1)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(length > 0, length, 1)


def release(vectors: np.ndarray) -> None:
    """Give back the memory that the pages of a file take which were read. They are read again when they are needed."""
    pages = getattr(vectors, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def normalised(entries: Entries) -> Entries:
    """The entries with vectors of length one."""
    return replace(entries, vectors=unit(entries.vectors))


def is_embeddings(path: Path) -> bool:
    """Whether a file holds embeddings with the place of each, as `dmlcore embed` writes them, and not data to embed."""
    if not path.is_file():
        return False
    try:
        if path.suffix == ".npz":
            if not check_archive_file(path):
                return False
            with np.load(path, allow_pickle=False) as arrays:
                return {"x", "row"} <= set(arrays.files)
        if path.suffix == ".npy":
            return "row" in _beside(path)
        if path.suffix in (".parquet", ".arrow"):
            return {"embedding", "row"} <= set(_schema(path).names)
    except (SealError, DataError, OSError, ValueError):
        return False  # reading it says why
    return False


def _schema(path: Path) -> Any:
    arrow = pyarrow()
    if path.suffix == ".parquet":
        return arrow.parquet.read_schema(path)
    with arrow.memory_map(str(path)) as source:
        return arrow.ipc.open_file(source).schema


def _beside(path: Path) -> dict[str, Any]:
    """The columns of the .csv that `dmlcore embed` writes beside an .npy; none where there is no such file."""
    file = path.with_suffix(".csv")
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if "row" not in (reader.fieldnames or ()):
            return {}
        columns: dict[str, Any] = {name: [] for name in reader.fieldnames or ()}
        for row in reader:
            for name, values in columns.items():
                values.append(row[name] or "")
    return {**columns, "row": np.array(columns["row"], dtype=np.int64)}


def read_embeddings(path: str | Path) -> Entries:
    """Embeddings out of a file.

    Args:
        path: an .npz with the array `x` (and `path`, `row`, `label` or `class_name`, and others of one value per row), an .npy
            of vectors, perhaps with a .csv of the same name beside it, or a .parquet or .arrow with a column of lists of
            numbers. Nothing in them is run.

    Raises:
        DataError: there is no such file, it is damaged, or holds no embeddings.
    """
    path = expanded(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"'{path}' must be a file of embeddings: {', '.join(SUFFIXES)}. Other data need a model before them")
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    try:
        if path.suffix == ".npy":
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            return _of_arrays({"x": vectors, **_beside(path)}, str(path))
        if path.suffix == ".npz":
            check_archive_file(path)
            with np.load(path, allow_pickle=False) as arrays:
                return _of_arrays({name: arrays[name] for name in arrays.files}, str(path))
        return _of_arrays(_columns(path), str(path))
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile and pyarrow have many of their own for a damaged file
        reason = "it holds Python objects" if "allow_pickle" in str(error) else first_line(error)
        raise DataError(f"'{path}' cannot be read: {reason}") from error


def _columns(path: Path) -> dict[str, Any]:
    """The columns of a table; the one of lists becomes an array [N, D]."""
    arrow = pyarrow()
    if path.suffix == ".parquet":
        table = arrow.parquet.read_table(path)
    else:
        with arrow.memory_map(str(path)) as source:
            table = arrow.ipc.open_file(source).read_all()
    types, columns = arrow.types, {}
    model = (table.schema.metadata or {}).get(MODEL.encode())
    if model is not None:
        columns[MODEL] = np.array(model.decode(errors="replace"))
    for name in table.column_names:
        column = table[name].combine_chunks()
        column = column.chunk(0) if isinstance(column, arrow.ChunkedArray) else column
        if types.is_fixed_size_list(column.type) or types.is_list(column.type) or types.is_large_list(column.type):
            if column.null_count:
                raise DataError(f"'{name}' in {path} has empty rows, but every row needs an embedding")
            lengths = np.unique(arrow.compute.list_value_length(column).to_numpy(zero_copy_only=False))
            if len(lengths) != 1:
                raise DataError(f"'{name}' in {path} holds lists of different lengths, but embeddings have one length")
            columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), int(lengths[0]))
        elif types.is_string(column.type) or types.is_large_string(column.type):
            columns[name] = ["" if value is None else value for value in column.to_pylist()]
        elif types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def _of_arrays(arrays: Mapping[str, Any], where: str) -> Entries:
    name = next((name for name in _VECTORS if name in arrays), None)
    if name is None:
        rows = [name for name, values in arrays.items() if isinstance(values, np.ndarray) and values.ndim == 2]
        if len(rows) != 1:
            raise DataError(f"{where} has no array 'x' of embeddings; it has {', '.join(arrays) or 'none'}")
        name = rows[0]
    vectors = np.asanyarray(arrays[name])
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(f"'{name}' in {where} is {vectors.dtype} of shape {vectors.shape}, but embeddings are numbers [N, D]")
    if vectors.dtype != np.float32:
        vectors = vectors.astype(np.float32)
    count = len(vectors)
    beside: dict[str, Any] = {}
    for other, values in arrays.items():
        if other != name and len(np.shape(values)) == 1 and len(values) == count:
            is_text = not isinstance(values, np.ndarray) or values.dtype.kind not in "iufb"
            beside[other] = list(map(str, values)) if is_text else values
    label = next((beside.pop(key) for key in _LABELS if key in beside), None)
    for key in _LABELS:
        beside.pop(key, None)  # the same labels as numbers
    if set(beside.get("split", ())) == {"all"}:
        del beside["split"]  # as `dmlcore embed` says of data that are not the run's own
    path = beside.pop("path", None)
    model = arrays.get(MODEL)
    row = np.asarray(beside.pop("row", np.arange(count)))
    if row.dtype.kind not in "iu":
        raise DataError(f"'row' in {where} is of type {row.dtype}, but must hold whole numbers")
    return Entries(
        vectors,
        None if path is None else list(map(str, path)),
        row.astype(np.int64),
        None if label is None else [str(value) for value in label],
        beside,
        model=str(model) if model is not None and np.ndim(model) == 0 else "",
    )


def of_arrays(
    vectors: Any,
    labels: Any = None,
    paths: Any = None,
    rows: Any = None,
    columns: Mapping[str, Any] | None = None,
) -> Entries:
    """Entries out of arrays.

    Args:
        vectors: [N, D] numbers, as an array or a tensor.
        labels: N of anything that has a name, or None.
        paths: N texts, or None.
        rows: N whole numbers; None: 0..N - 1.
        columns: further values of each by name.

    Raises:
        ConfigError: a column has a name that is taken.
        DataError: wrong shapes, or numbers that are not finite.
    """
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu().numpy()
    vectors = np.asarray(vectors, dtype=np.float32)
    for name in columns or {}:
        if name in (*IDENTITY, "score"):
            raise ConfigError(f"a column may not be called '{name}', which every entry has")
    texts = {name: None if values is None else [str(value) for value in values] for name, values in
             (("label", labels), ("path", paths))}  # fmt: skip
    row = np.arange(len(vectors)) if rows is None else np.asarray(rows, dtype=np.int64)
    return Entries(vectors, texts["path"], row, texts["label"], dict(columns or {}))
