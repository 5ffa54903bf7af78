"""What was learnt of very many image files, kept in the user's cache: so the next start need not look at each of them.

An index counts as long as the folders of the files and the lists that name them are the same ones and were not written to, and
pictures have the size and the times that they had: all of them, or an even spread of very many.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dmlcore.data.images import Header
from dmlcore.data.index_files import file_of, read_arrays, write_arrays
from dmlcore.data.label_sets import LabelSets
from dmlcore.data.path_lists import PathList, TextColumn
from dmlcore.errors import ConfigError

LEAST = 10_000  # pictures that are looked for faster than an index of them is of use
CHECKED = 2**17  # pictures whose size and time are compared at each start, half a second of work
_YOUNG = 2 * 10**9  # nanoseconds: what was written to so shortly before may be written to again unseen
_AHEAD = 3600 * 10**9  # a time that lies so far in the future is no sign of writing
_PLAIN = ("class_names", "split_note", "label_names", "notes")
_PASSING = tuple(  # what the system says of a file, which may be another thing at the next start with the same file
    f"[Errno {number}]"
    for number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
)
Mark = tuple[int, int, int, int]


def mark_of(path: str) -> Mark:
    """When the content of a folder or file was written last, its size, which one it is, and when anything of it changed, such
    as who may read it. All -1: it is gone."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1, -1, -1
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


@dataclass
class Pictures:
    """What a source says of its image files.

    Attributes:
        paths: of N files. A `PathList` takes little memory.
        labels: int64 [N], an index into `class_names`.
        class_names: a name per class.
        split: text [N] of parts, or None.
        split_note: what the split means, for the user.
        levels: by level of coarser labels the group of each class.
        label_sets, label_names: of the classes, where samples have several labels.
        notes: what the user should know.
        sizes: int64 [N], bytes, where files go by their names and sizes. None: they go by their contents.
        marks: by path of what they follow from, folders and lists, its mark. Without any nothing is kept.
    """

    paths: Sequence[str]
    labels: np.ndarray
    class_names: list[str]
    split: np.ndarray | None = None
    split_note: str = ""
    levels: dict[str, list[str]] = field(default_factory=dict)
    label_sets: LabelSets | None = None
    label_names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: np.ndarray | None = None
    marks: dict[str, Mark] = field(default_factory=dict)


class PictureIndex:
    """Image files, and what is known of them.

    Args:
        root: of the data, absolute: a folder or a list.
        purpose: what is looked for there.
        is_kept: what is learnt may be written.

    Attributes:
        is_known: an earlier start has learnt it, and nothing has changed since.
        about: plain values.
        arrays: by name. `marks` int64 [F, 4] of the paths in `marked_joined` and `marked_ends`; the pictures as `name_joined`,
            `name_ends`, `folder_joined`, `folder_ends` and `folder_of`; `labels` int32 [N]; `stamps` int64 [n, 3] of an even
            spread of pictures, size and both times. Where there are any `parts` int8 [N], `sizes` int64 [N], the starts and
            entries of sets, and by level the groups of the classes. Later `looked_at` int64 [n], `headers` int32 [n, 3]
            (height, width, grey; -1 unreadable) and `digests` uint64 [N].
    """

    def __init__(self, root: str, purpose: str, *, is_kept: bool = True) -> None:
        self.root = root
        self.purpose = purpose
        self.is_kept = is_kept
        self.is_known = False
        self.about: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self._began = time.time_ns()

    def recall(self) -> None:
        """Take what an earlier start has written, if it is not damaged, of another version, or of files that have changed."""
        try:
            content = read_arrays(file_of(self.root, self.purpose), self.root)
            if content is not None:
                self.about, self.arrays = content
                self.is_known = self._is_current()
        except (ConfigError, KeyError, ValueError, TypeError, AttributeError):
            self.is_known = False

    def learn(self, pictures: Pictures, called: str) -> None:
        """Take what a source says.

        Args:
            pictures: that it has looked for since this object was made.
            called: the root of the paths as they begin with it; empty: they begin with nothing.
        """
        listed = pictures.paths if isinstance(pictures.paths, PathList) else PathList.of(pictures.paths, called)
        self.arrays = {
            "folder_joined": listed.folders.joined,
            "folder_ends": listed.folders.ends,
            "name_joined": listed.names.joined,
            "name_ends": listed.names.ends,
            "folder_of": listed.folder_of,
            "labels": pictures.labels.astype(np.int32),
        }
        # Copies lie close together. The originals lie between what reading the lists needed, whose memory they would hold.
        plain = json.loads(json.dumps({name: getattr(pictures, name) for name in _PLAIN}))
        self.about = {"base": os.path.abspath(called), **plain, "levels": {}}
        for level, groups in pictures.levels.items():
            numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
            self.about["levels"][level] = list(numbers)
            self.arrays[f"level {level}"] = np.array([numbers[group] for group in groups], dtype=np.int32)
        if pictures.split is not None:
            words, parts = np.unique(pictures.split, return_inverse=True)
            self.about["parts"], self.arrays["parts"] = words.tolist(), parts.astype(np.int8)
        if pictures.sizes is not None:
            self.arrays["sizes"] = pictures.sizes
        if pictures.label_sets is not None:
            self.arrays |= {"set_starts": pictures.label_sets.starts, "set_index": pictures.label_sets.index}
        self.is_kept = self.is_kept and len(listed) >= LEAST and bool(pictures.marks)
        if self.is_kept:
            self._mark(pictures.marks, listed)

    def _mark(self, marks: dict[str, Mark], listed: PathList) -> None:
        """What tells whether anything changes. Where something was written to just now, nothing is kept."""
        column = TextColumn.of(os.path.abspath(path) for path in marks)
        values = np.array(list(marks.values()), dtype=np.int64).reshape(-1, 4)
        stamps = _stamps(listed)
        self.arrays |= {"marks": values, "marked_joined": column.joined, "marked_ends": column.ends, "stamps": stamps}
        times = np.concatenate([values[:, 0], stamps[:, 1]])
        self.is_kept = not bool(((times > self._began - _YOUNG) & (times < self._began + _AHEAD)).any())

    def pictures(self, called: str) -> Pictures:
        """What the source said, with paths below the root as it is called now."""
        arrays, about = self.arrays, self.about
        columns = [TextColumn(arrays[f"{which}_joined"], arrays[f"{which}_ends"]) for which in ("folder", "name")]
        paths = PathList(columns[0], columns[1], arrays["folder_of"], called)
        names = list(about["label_names"])
        return Pictures(
            paths=paths if len(paths) >= LEAST else list(paths),
            labels=arrays["labels"].astype(np.int64),
            class_names=list(about["class_names"]),
            split=np.array(about["parts"])[arrays["parts"]] if "parts" in arrays else None,
            split_note=str(about["split_note"]),
            levels={
                level: [groups[number] for number in arrays[f"level {level}"].tolist()]
                for level, groups in about["levels"].items()
            },
            label_sets=LabelSets(arrays["set_starts"], arrays["set_index"], len(names)) if "set_starts" in arrays else None,
            label_names=names,
            notes=list(about["notes"]),
            sizes=arrays.get("sizes"),
        )

    def has_seen(self, rows: np.ndarray) -> bool:
        """Whether just these pictures, int64 [n], were read before."""
        return "headers" in self.arrays and np.array_equal(self.arrays["looked_at"], rows)

    def headers(self) -> list[Header]:
        """What the headers of the readable pictures say, each of what differs once."""
        values = np.unique(self.arrays["headers"], axis=0).tolist()
        return [Header(height, width, bool(is_grey)) for height, width, is_grey in values if height >= 0]

    def failed(self) -> dict[int, str]:
        """By place among those looked at why a picture cannot be read."""
        return {int(row): str(reason) for row, reason in self.about.get("failed", {}).items()}

    def remember_headers(self, rows: np.ndarray, headers: Sequence[Header | str], failed: dict[int, str]) -> None:
        """Add what reading some pictures, int64 [n], has told. `failed` is by place among them."""
        self.about["failed"] = {str(row): reason for row, reason in failed.items()}
        self.is_kept = self.is_kept and not any(reason.startswith(_PASSING) for reason in failed.values())
        values = np.full((len(headers), 3), -1, dtype=np.int32)
        for row, header in enumerate(headers):
            if isinstance(header, Header):
                values[row] = header.height, header.width, header.is_grey
        self._remember(looked_at=rows, headers=values)

    def digests(self, rows: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Numbers of the contents of some pictures, uint64 [n].

        Args:
            rows: int64 [n].
            read: gives them, where they are not known.
        """
        numbers = self.arrays.get("digests")
        if numbers is None or not numbers[rows].all():
            numbers = np.zeros(len(self.arrays["labels"]), dtype=np.uint64)
            numbers[rows] = read()
            self._remember(digests=numbers)
        return numbers[rows]

    def _remember(self, **arrays: np.ndarray) -> None:
        """Add what was learnt later, and write it where that can be done."""
        self.arrays.update(arrays)
        if self.is_kept:
            with contextlib.suppress(ConfigError):  # no place for a cache
                write_arrays(file_of(self.root, self.purpose), self.root, self.about, self.arrays)

    def _is_current(self) -> bool:
        marked = TextColumn(self.arrays["marked_joined"], self.arrays["marked_ends"])
        for path, mark in zip(marked, self.arrays["marks"].tolist(), strict=True):
            if mark_of(path) != tuple(mark):
                return False
        return np.array_equal(_stamps(self.pictures(self.about["base"]).paths), self.arrays["stamps"])


def spread(count: int, most: int) -> np.ndarray:
    """Some of `count` rows, evenly spread, or all where they are no more than `most`. int64, rising."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _stamps(paths: Sequence[str]) -> np.ndarray:
    """Size and both times of an even spread of files, int64 [n, 3]; -1 of those that are gone."""
    rows = spread(len(paths), CHECKED)
    some = paths.select(rows) if isinstance(paths, PathList) else [str(paths[row]) for row in rows.tolist()]
    stamps = array("q")
    for path in some:
        written, size, _, changed = mark_of(path)
        stamps.extend((size, written, changed))
    return np.frombuffer(stamps, dtype=np.int64).reshape(-1, 3)
