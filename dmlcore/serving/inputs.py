"""Data out of a source as a trained model takes them: with or without labels, also a single picture or a file of lines, in the
model's size and colours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmlcore import plugin_files
from dmlcore.data import ImageFiles, LabelledDataset, PathImages, PixelOptions, PixelStore, Table, image_table, load_table
from dmlcore.data import text_table as table_of_texts
from dmlcore.data.part_words import ROLES, check_roles, join_own_entries, rows_of_part
from dmlcore.errors import DataError
from dmlcore.files import expanded
from dmlcore.serving.samples import Preparation, is_picture_file

_GREY = np.array([299, 587, 114], dtype=np.uint32)  # of red, green and blue in thousandths, as Pillow has them


@dataclass(frozen=True)
class Parts:
    """Data as a trained model takes them.

    Attributes:
        name: of the data.
        parts: `train`, `validation`, `test` and `none` (in none of these) of a run's own data. Of other data `all`, or `test`
            and `none` where these have queries and a gallery.
        notes: what the user should know.
        has_labels: whether the labels mean anything.
        sample_names: a name per sample of the source, by the parts' `rows`.
        paths: the file of each sample of the source. None: the samples are no files of their own.
    """

    name: str
    parts: dict[str, LabelledDataset]
    notes: list[str] = field(default_factory=list)
    has_labels: bool = True
    sample_names: Sequence[str] = ()
    paths: Sequence[str] | None = None

    def joined(self) -> tuple[LabelledDataset, np.ndarray]:
        """All samples in the order of their source, and the part of each, text [N]."""
        whole = LabelledDataset.joined(list(self.parts.values()))
        split = np.concatenate([words_of(name, part) for name, part in self.parts.items()])
        return whole, split[np.argsort(np.concatenate([part.rows for part in self.parts.values()]), kind="stable")]

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where samples stand in their source, int64 [n]: in tables the numbers of their rows, in other data the place among
        the samples that can be read.

        Args:
            rows: int64 [n], of the samples.
        """
        if self.paths is not None or not all(name.isdecimal() for name in self.sample_names[:1]):
            return rows
        return np.array([int(str(self.sample_names[row])) for row in rows.tolist()], dtype=np.int64)


def words_of(name: str, part: LabelledDataset) -> np.ndarray:
    """What a split says of the samples of a part, text [n]: its name, or the roles of test samples."""
    return np.full(len(part), name) if part.roles is None else part.roles


def parts_of(table: Table) -> tuple[dict[str, LabelledDataset], list[str]]:
    """Data that no run knows as one part, `all`. Where they have queries and a gallery, these as `test` and the rest as `none`.
    And notes.

    Raises:
        DataError: there are queries without a gallery, or a gallery without queries.
    """

    def part(rows: np.ndarray, roles: np.ndarray | None = None) -> LabelledDataset:
        dataset = LabelledDataset(
            table.samples,
            rows,
            table.labels[rows],
            table.class_names,
            table.sample_shape,
            roles=roles,
            sets=table.label_sets,
            label_names=table.label_names,
            levels=table.levels,
        )
        dataset.names = table.names() if table.paths is None else table.paths
        return dataset

    everyone = np.arange(len(table.labels))
    if table.split is None or not np.isin(table.split, ROLES).any():
        return {"all": part(everyone)}, []
    check_roles(set(table.split))
    split, notes = join_own_entries(table.split, table.labels, table.content_digests)
    rows, roles = rows_of_part(split, "test")
    parts = {"test": part(rows, roles), "none": part(np.setdiff1d(everyone, rows))}
    test = parts["test"]
    return parts, [*notes, f"{len(test.queries):,} queries are ranked against a gallery of {len(test.references):,}"]


def named_by_user(data: Any) -> Any:
    """Data as they are, a path as text. A file of code that stands for them is consented to: the user named it now."""
    if isinstance(data, str | os.PathLike):
        data = os.fspath(data)
        plugin_files.remember(plugin_files.absolute(data))
    return data


def table_for(preparation: Preparation, data: Any, options: dict[str, Any] | None = None) -> tuple[str, Table]:
    """The name and the samples of data in the shape that a model takes.

    Args:
        preparation: of the model.
        data: a name, a path, or the data themselves, as `open_data` takes them. Also a single picture, and a text file with a
            text per line.
        options: of the data.

    Raises:
        DataError: the data cannot be used, or are of another kind or shape.
    """
    kind, shape = preparation.kind, preparation.sample_shape
    side = shape[1] if kind == "images" and shape[1] == shape[2] else None
    if kind == "images" and isinstance(data, str) and is_picture_file(data):
        name, table = data, _picture(data, preparation)
    elif kind == "texts" and isinstance(data, str) and data.lower().endswith(".txt"):
        name, table = data, _lines(data)
    else:
        source, table = load_table(
            data,
            options=options,
            image_size=side,
            interpolation=preparation.interpolation,
            resize=preparation.resize,
            needs_labels=False,
        )
        name = data if isinstance(data, str) else source.name
    if kind == table.kind == "images" and table.sample_shape[0] != shape[0]:
        _recolour(table, shape[0])
    if kind == table.kind == "images" and isinstance(table.samples, ImageFiles) and table.samples.size != shape[1:]:
        table.samples.size, table.sample_shape = (shape[1], shape[2]), shape
    return name, table


def _picture(path: str, preparation: Preparation) -> Table:
    file = expanded(path)
    if not file.is_file():
        raise DataError(f"there is no file '{file}'")
    options = PixelOptions(interpolation=preparation.interpolation)
    if preparation.resize:
        options = PixelOptions(interpolation=preparation.interpolation, crops="dml", resize=preparation.resize, augment="none")
    images, labels = PathImages([str(file)]), np.zeros(1, dtype=np.int64)
    table = image_table(images, labels, [""], options, path, image_size=preparation.sample_shape[1])
    table.has_labels = False
    return table


def _lines(path: str) -> Table:
    """The texts of a file with a text per line; empty lines are left out."""
    try:
        lines = [line.strip() for line in expanded(path).read_text(encoding="utf-8-sig").replace("\0", " ").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from error
    rows = [row for row, line in enumerate(lines) if line]
    if not rows:
        raise DataError(f"'{path}' has no texts")
    table = table_of_texts([lines[row] for row in rows], np.zeros(len(rows), dtype=np.int64), [""])
    table.has_labels = False
    table.sample_names = [str(row) for row in rows]
    return table


def _recolour(table: Table, channels: int) -> None:
    """Bring pictures to the channels that the model takes, in place."""
    before, store = table.sample_shape[0], table.samples
    if isinstance(store, ImageFiles):
        store.channels = channels
    elif isinstance(store, PixelStore) and channels == 3 and before == 1:
        table.samples = PixelStore(np.repeat(store.pixels, 3, axis=1))
    elif isinstance(store, PixelStore) and channels == 1 and before == 3:
        grey = np.tensordot(store.pixels.astype(np.uint32), _GREY, axes=([1], [0])) + 500  # [N, H, W]
        table.samples = PixelStore((grey // 1000).astype(np.uint8)[:, None])
    else:
        return
    table.sample_shape = (channels, *table.sample_shape[1:])
    table.skipped.append(f"the model takes {'grey' if channels == 1 else 'colour'} pictures: these were converted")
