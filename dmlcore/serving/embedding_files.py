"""Files of embeddings: what is known of the samples, and the forms `.npz`, `.npy`, `.parquet` and `.arrow`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmlcore.data import LabelledDataset, pyarrow
from dmlcore.files import check_new, replacing, writable_text
from dmlcore.seals import seal_archive_file
from dmlcore.serving.entries import MODEL
from dmlcore.serving.inputs import Parts

FORMS = (".npz", ".npy", ".parquet", ".arrow")
_CHUNK = 2**14  # rows at a time


@dataclass(frozen=True)
class Columns:
    """What is known of N samples.

    Attributes:
        row: int64 [N].
        split: text [N].
        labels: int64 [N]. None: there are no labels.
        class_names: a name per label.
        paths: a file per sample. None: the samples are no files.
    """

    row: np.ndarray
    split: np.ndarray
    labels: np.ndarray | None
    class_names: np.ndarray
    paths: list[str] | None

    @classmethod
    def of(cls, parts: Parts, whole: LabelledDataset, split: np.ndarray, is_read: np.ndarray) -> Columns:
        """Of those samples that could be read, bool [N]."""
        rows = whole.rows[is_read]
        names = np.array([writable_text(name) for name in whole.table_names], dtype=str)
        return cls(
            parts.places(rows),
            split[is_read],
            whole.labels[is_read] if parts.has_labels else None,
            names,
            [writable_text(str(parts.paths[row])) for row in rows.tolist()] if parts.paths is not None else None,
        )

    def between(self, start: int, end: int) -> dict[str, list[Any]]:
        """Columns of some samples by name: `row`, `path`, `label`, `split`, those that there are."""
        columns: dict[str, list[Any]] = {"row": self.row[start:end].tolist()}
        if self.paths is not None:
            columns["path"] = self.paths[start:end]
        if self.labels is not None:
            columns["label"] = self.class_names[self.labels[start:end]].tolist()
        return {**columns, "split": self.split[start:end].tolist()}


def check_form(out: Path, *, overwrite: bool) -> None:
    """Refuse a file before anything is computed.

    Raises:
        ConfigError: of another form, or it exists and is not to be replaced.
        DataError: pyarrow is missing.
    """
    check_new(out, FORMS, "out", overwrite=overwrite)
    if out.suffix == ".npy":
        check_new(out.with_suffix(".csv"), [".csv"], "out", overwrite=overwrite)
    if out.suffix in (".parquet", ".arrow"):
        pyarrow()


def write_columns(out: Path, values: np.ndarray, is_read: np.ndarray, columns: Columns, model: str) -> dict[str, Any]:
    """Write a file of embeddings.

    Args:
        out: whose ending says the form.
        values: float32 [M, D].
        is_read: bool [M], which rows are embeddings, N of them.
        columns: of these N.
        model: fingerprint of what embedded them, which an `.npy` has no place for.

    Returns:
        `arrays` or `columns`, their names; `beside`, a second file.

    Raises:
        TrainingError: the file cannot be written; one that was there before is intact.
    """
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {
            "x": values if is_read.all() else values[is_read],
            "row": columns.row,
            "split": columns.split,
        }
        if columns.labels is not None:
            arrays |= {"y": columns.labels, "class_name": columns.class_names[columns.labels]}
        if columns.paths is not None:
            arrays["path"] = np.array(columns.paths, dtype=str)
        arrays[MODEL] = np.array(model)
        with replacing(out) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
            seal_archive_file(temporary)
        return {"arrays": list(arrays)}
    if out.suffix == ".npy":
        beside = out.with_suffix(".csv")
        with replacing(beside) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns.between(0, 0))
            for start in range(0, len(columns.row), _CHUNK):
                writer.writerows(zip(*columns.between(start, start + _CHUNK).values(), strict=True))
        with replacing(out) as temporary, open(temporary, "wb") as file:
            shape = (int(is_read.sum()), values.shape[1])
            np.lib.format.write_array_header_2_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for chunk in _chunks(values, is_read):
                file.write(np.ascontiguousarray(chunk).data)
        return {"arrays": ["x"], "beside": str(beside), "columns": list(columns.between(0, 0))}
    with replacing(out) as temporary:
        _write_arrow(temporary, values, is_read, columns, model, is_parquet=out.suffix == ".parquet")
    return {"columns": [*columns.between(0, 0), "embedding"]}


def _write_arrow(
    path: Path, values: np.ndarray, is_read: np.ndarray, columns: Columns, model: str, *, is_parquet: bool
) -> None:
    arrow = pyarrow()
    kinds = {"row": arrow.int64(), "path": arrow.string(), "label": arrow.string(), "split": arrow.string()}
    width = values.shape[1]
    fields = [arrow.field(name, kinds[name]) for name in columns.between(0, 0)]
    schema = arrow.schema([*fields, arrow.field("embedding", arrow.list_(arrow.float32(), width))], {MODEL: model})
    opened = arrow.parquet.ParquetWriter(str(path), schema) if is_parquet else arrow.ipc.new_file(str(path), schema)
    with opened as writer:
        start = 0
        for chunk in _chunks(values, is_read):
            known = columns.between(start, start + len(chunk))
            start += len(chunk)
            lists = arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(chunk).reshape(-1)), width)
            arrays = [*(arrow.array(entries, kinds[name]) for name, entries in known.items()), lists]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))


def _chunks(values: np.ndarray, is_read: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK][is_read[start : start + _CHUNK]]
        if len(chunk):
            yield chunk
