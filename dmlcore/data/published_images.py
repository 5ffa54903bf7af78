"""Data sets of pictures that their authors publish with lists: what their sources have in common. Each has a plugin, which
reads its lists.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dmlcore import progress
from dmlcore.data.image_tables import FileOptions, LevelledFileOptions
from dmlcore.data.path_lists import PathList
from dmlcore.data.picture_index import Pictures, mark_of
from dmlcore.data.picture_tables import open_index, picture_table
from dmlcore.data.sources import DataSource, Table
from dmlcore.errors import DataError
from dmlcore.files import expanded

_LOOKED_AT = 512  # pictures whose headers and pixels are read before the training; `dmlcore data check` reads all


@dataclass(frozen=True)
class SplitOptions(FileOptions):
    """Options of data sets that have a split of the samples of each class, too."""

    split: Literal["zero_shot", "official"] = "zero_shot"
    """The first half of the classes trains and the second is tested, or the authors' own split, where the same classes are in
    training and test."""


@dataclass(frozen=True)
class LevelledSplitOptions(SplitOptions, LevelledFileOptions):
    """The same, with coarser labels."""


@dataclass
class Listing:
    """What the lists of a data set say.

    Attributes:
        files: paths of the pictures below the root, N.
        labels: int64 [N], an index into `class_names`.
        class_names: a name per class, in the authors' order.
        split: text [N] of `train`, `validation`, `test`, `query`, `gallery`, or empty for no part.
        split_note: what the split is, for the user.
        levels: by level the group of each class.
        notes: what the user should know.
        read_from: the lists and folders that all this follows from, also such as are looked for and are not there. A change of
            one is a change of the data. Empty: nobody says, so what is learnt of the pictures is not kept.
    """

    files: list[str]
    labels: np.ndarray
    class_names: list[str]
    split: np.ndarray
    split_note: str
    levels: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    read_from: Sequence[Path] = ()


class PublishedImages(DataSource):
    """Base of data sets of pictures that have lists. Options have `path`; `levels` where there are coarser labels.

    Attributes:
        title: as the authors call it.
        home: where its owners publish it.
        layout: what lies in the root, in words.
        marks: by what the root is recognised: any of these sets of files or folders.
        folders: folders in which the root may lie, as archives unpack it.
        published: classes and pictures of the whole data set.
    """

    title: ClassVar[str]
    home: ClassVar[str]
    layout: ClassVar[str]
    marks: ClassVar[tuple[tuple[str, ...], ...]]
    folders: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[tuple[int, int]]

    @abstractmethod
    def read(self, root: Path) -> Listing:
        """Read the lists.

        Raises:
            DataError: one is missing, or damaged.
        """

    @classmethod
    def root_of(cls, path: Path) -> Path | None:
        """The root at a path, or in one of `folders` there; None: there is none."""
        for folder in (path, *(path / name for name in cls.folders)):
            if any(all(os.path.exists(folder / name) for name in names) for names in cls.marks):
                return folder
        return None

    def load(self) -> Table:
        """Read the lists and look at some of the pictures. Nothing is downloaded.

        Raises:
            DataError: no such data set, lists that are damaged, more than half of the pictures missing or damaged.
            ConfigError: a level that there is not.
        """
        root = self._root()
        index = open_index(self, str(root), self._decisive_options())
        if not index.is_known:
            index.learn(self._listed(root), str(root))
        levels = getattr(self.options, "levels", ())
        table = picture_table(self, index, str(root), levels=levels, most_looked_at=_LOOKED_AT)
        table.has_labels = True
        return table

    def _decisive_options(self) -> dict[str, Any]:
        """The options that decide which pictures, labels and parts there are: those that are not of every source."""
        general = {entry.name for entry in fields(LevelledFileOptions)}
        return {entry.name: getattr(self.options, entry.name) for entry in fields(self.options) if entry.name not in general}

    def _listed(self, root: Path) -> Pictures:
        """What the lists say, and which of the pictures are there."""
        listing = self.read(root)
        if not listing.files:
            raise DataError(f"the lists of {self.title} in '{root}' name no picture")
        prefix = os.path.join(str(root), "")
        sizes = _sizes(prefix, listing.files)
        notes = [*listing.notes, *self._compared(listing), *self._missing(listing, sizes, root)]
        folders = dict.fromkeys(name.rpartition("/")[0] for name in listing.files)
        read_from = [*(str(path) for path in listing.read_from), *(prefix + folder for folder in folders)]
        rows = np.flatnonzero(sizes >= 0)
        return Pictures(
            paths=PathList.of((prefix + listing.files[row] for row in rows.tolist()), str(root)),
            labels=listing.labels[rows],
            class_names=listing.class_names,
            split=listing.split[rows],
            split_note=listing.split_note,
            levels=listing.levels,
            notes=notes,
            sizes=sizes[rows],
            marks={path: mark_of(path) for path in read_from} if listing.read_from else {},
        )

    def _root(self) -> Path:
        place = f"{self.title} is published at {self.home}. {self.layout}"
        if not self.options.path:
            here = f" A folder '{self.name}' of your own is meant by ./{self.name}." if os.path.isdir(self.name) else ""
            raise DataError(f"the data '{self.name}' needs a path: --{self.name}.path DIR.{here} {place}")
        path = expanded(self.options.path)
        root = self.root_of(path)
        if root is None:
            what = f"'{path}' holds no {self.title}" if path.is_dir() else f"there is no folder '{path}'"
            what = f"'{path}' is a file, but must be the folder of {self.title}" if path.is_file() else what
            raise DataError(f"{what}. {place}")
        return root

    def _compared(self, listing: Listing) -> list[str]:
        classes, pictures = self.published
        if (len(listing.class_names), len(listing.files)) == self.published:
            return []
        return [
            f"{self.title} as published has {pictures:,} pictures of {classes:,} classes, but these lists name"
            f" {len(listing.files):,} of {len(listing.class_names):,}: scores are not those of the publications"
        ]

    def _missing(self, listing: Listing, sizes: np.ndarray, root: Path) -> list[str]:
        gone = np.flatnonzero(sizes < 0)
        if not len(gone):
            return []
        shown = f"{len(gone):,} of {len(sizes):,} pictures that the lists name are missing, the first is"
        first = f"'{root / listing.files[gone[0]]}'"
        if 2 * len(gone) > len(sizes):
            raise DataError(f"{shown} {first}. {self.layout}")
        return [f"{shown} {first}; they were left out, so scores are not those of the publications"]


def first_half(labels: np.ndarray, classes: int, more_to_train: bool = False) -> tuple[np.ndarray, str]:
    """The zero-shot split of the field: the first half of the classes trains, the others are tested.

    Args:
        labels: int64 [N], in the authors' order of the classes.
        classes: how many there are.
        more_to_train: of an odd number, training gets the one that is left.

    Returns:
        text [N], and a note for the user.
    """
    trained = (classes + more_to_train) // 2
    note = f"zero-shot split: the first {trained:,} of {classes:,} classes train, the other {classes - trained:,} are tested"
    return np.where(labels < trained, "train", "test"), note


def official_note(title: str) -> str:
    """What is said of a split that tests the classes which are trained on."""
    return f"the classification split of {title}: the test classes are trained on"


def read_rows(path: Path, columns: int, *, skip: int = 0, separator: str | None = None) -> list[list[str]]:
    """The rows of a list, whatever its line ends. Blank lines and those that begin with `#` are left out.

    Args:
        path: of the file, UTF-8.
        columns: of each row. The last one may hold separators.
        skip: lines before the rows.
        separator: of columns; None: blanks.

    Raises:
        DataError: it is missing, no text, or a row has too few columns.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    rows = []
    for number, line in enumerate(lines[skip:], skip + 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        row = text.split(separator, columns - 1)
        if len(row) < columns:
            raise DataError(f"line {number} of '{path}' has {len(row)} columns instead of {columns}: is the file cut off?")
        rows.append(row)
    return rows


def id_numbers(values: Sequence[Any], path: Path) -> np.ndarray:
    """Whole numbers of a list as int64 [N].

    Raises:
        DataError: one is none.
    """
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"'{path}' is damaged: {error}") from None


def dense_ids(ids: np.ndarray, known: Sequence[int] | np.ndarray, path: Path) -> np.ndarray:
    """Ids of a list as places among those that are known: int64 [N].

    Raises:
        DataError: one is not known.
    """
    if not len(known):
        raise DataError(f"the classes that '{path}' needs are in no list: is a file empty?")
    order = np.argsort(known, kind="stable")
    ordered = np.asarray(known)[order]
    places = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
    wrong = np.flatnonzero(ordered[places] != ids)
    if len(wrong):
        raise DataError(f"'{path}' has the class {ids[wrong[0]]}, which there is not")
    return order[places]


def _sizes(prefix: str, names: Sequence[str]) -> np.ndarray:
    """Bytes of each file, int64 [N]; -1 where there is none."""
    sizes = np.empty(len(names), dtype=np.int64)
    for row, name in enumerate(progress.track(names, "looking for the pictures", len(names))):
        try:
            sizes[row] = os.stat(prefix + name).st_size
        except (OSError, ValueError):
            sizes[row] = -1
    return sizes
