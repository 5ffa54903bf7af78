"""WebDataset shards: tar archives in which files of one name but for its endings are a sample, such as `1.jpg` and `1.cls`.

The archives are read through once for an index, of 32 bytes per image: where each image lies, its label, and a number by which
it is known again. Samples are then read by their places. The index is not kept on the disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

import dmlcore
from dmlcore.data import IMAGE_SUFFIXES, DataSource, ImageOptions, Table, image_table, is_missing, sub_folders, tidy_names
from dmlcore.errors import DataError
from dmlcore.files import expanded, writable_text

_LABELS = ("cls", "json", "txt")  # endings of a label, the likeliest first
_KEYS = ("label", "class", "cls", "class_name", "target")  # of it in a .json
_MOST_BYTES = 2**20  # of a label's file
_MOST_SHARDS = 10**6
_BRACES = re.compile(r"\{([^{}]*)\}")
_NAMED = 3  # samples named in a note


@dataclass(frozen=True)
class ShardOptions(ImageOptions):
    """Options of WebDataset shards."""

    label: str | None = None
    """Ending of the files with labels (default: `cls`, `json` or `txt`, whichever the first sample has)."""
    key: str | None = None
    """What the label is called in a .json (default: `label`, `class`, `cls`, `class_name` or `target`)."""


class WebDataset(DataSource):
    """Tar shards as the package webdataset writes them: a .tar file, a folder of such, or `shards/{000..099}.tar`. A sample has
    an image, and a .cls, .json or .txt with its label.
    """

    name = "webdataset"
    Options = ShardOptions
    reads = "a .tar of WebDataset"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Files that end in .tar, patterns of such with braces, and folders with such files but without sub-folders, which
        would be classes."""
        if path.suffix.lower() == ".tar":
            return not path.is_dir()
        try:
            return path.is_dir() and any(_is_shard(entry) for entry in os.scandir(path)) and not sub_folders(path)
        except (OSError, DataError):
            return False

    def load(self) -> Table:
        """Read the index, and the images as other sources of images do.

        Raises:
            DataError: no such shards, a damaged or compressed one, samples without images or labels.
        """
        if not self.options.path:
            raise DataError("the data 'webdataset' need a path: --data FILE.tar, or --webdataset.path FILE.tar")
        root = expanded(self.options.path)
        shards = _shards(root)
        index = _Index(self.options)
        for number, shard in enumerate(shards):
            index.add(number, shard)
        where = f"'{root}'"
        if not len(index.places):
            raise DataError(f"{where} has no images with labels (known: {' '.join(sorted(IMAGE_SUFFIXES))}){index.told()}")
        if not index.names and self.needs_labels:
            raise DataError(f"{where} has no labels: a sample needs a file that ends in .cls, .json or .txt beside its image")
        names = list(index.names) or [""]
        tidied, notes = tidy_names(names)
        order = {name: label for label, name in enumerate(_in_order(set(tidied.values())))}
        labels = np.array([order[tidied[name]] for name in names], dtype=np.int64)[np.frombuffer(index.labels, dtype=np.int32)]
        table = image_table(
            TarImages(shards, index),
            labels,
            list(order),
            self.options,
            where,
            image_size=self.image_size,
            default_image_size=self.default_image_size,
        )
        table.skipped = [*index.notes(), *notes, *table.skipped]
        table.has_labels = bool(index.names)
        return table


class TarImages:
    """Images in tar archives.

    Args:
        shards: paths of the archives.
        index: of them.
        rows: int64 [N], which of its images. None: all.
    """

    def __init__(self, shards: list[str], index: _Index, rows: np.ndarray | None = None) -> None:
        self._shards = shards
        self._index = index
        self._rows = np.arange(len(index.places)) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def opened(self, row: int) -> BinaryIO:
        entry = int(self._rows[row])
        with open(self._shards[self._index.shards[entry]], "rb") as file:  # of its own, as threads and processes ask for it
            file.seek(self._index.places[entry])
            return io.BytesIO(file.read(self._index.sizes[entry]))

    def shown(self, row: int) -> str:
        entry = int(self._rows[row])
        shard = os.path.basename(self._shards[self._index.shards[entry]])
        return f"{writable_text(shard)}:{self._index.places[entry]}"

    def select(self, rows: np.ndarray) -> TarImages:
        return TarImages(self._shards, self._index, self._rows[rows])

    def digests(self) -> np.ndarray:
        """Of the names and sizes of the files: to read all images again would take as long as an epoch."""
        return np.frombuffer(self._index.digests, dtype=np.uint64)[self._rows]


@dataclass
class _Sample:
    """The files of one name.

    Attributes:
        key: the name without its endings.
        image: place and size of the image.
        digest: of the image's name and size.
        labels: contents of possible labels, by ending.
    """

    key: str
    image: tuple[int, int] | None = None
    digest: int = 0
    labels: dict[str, bytes] = field(default_factory=dict)


class _Index:
    """Where the images of archives lie, in arrays of numbers.

    Attributes:
        shards: number of the archive.
        places: first byte of the image in it.
        sizes: bytes of the image.
        labels: number of the label among `names`.
        digests: of the image's name and size.
        names: labels as they are written, by their numbers.
    """

    def __init__(self, options: ShardOptions) -> None:
        self._options = options
        self._ending = options.label.lstrip(".").lower() if options.label is not None else ""
        self._without: dict[str, list[str]] = {"image": [], "label": []}
        self._counts = {"image": 0, "label": 0}
        self.shards, self.places, self.sizes = array("i"), array("q"), array("q")
        self.labels, self.digests = array("i"), array("Q")
        self.names: dict[str, int] = {}

    def add(self, number: int, shard: str) -> None:
        """Take in the samples of an archive."""
        for sample in _samples(shard):
            if sample.image is None:
                self._miss("image", sample.key)
                continue
            label = self._label(sample, shard)
            if label is None and (self.names or self._ending):
                self._miss("label", sample.key)
                continue
            if label is not None and not self.names and len(self.places):  # earlier ones had none
                self._counts["label"] += len(self.places)
                self._clear()
            self.shards.append(number)
            self.places.append(sample.image[0])
            self.sizes.append(sample.image[1])
            self.labels.append(0 if label is None else self.names.setdefault(label, len(self.names)))
            self.digests.append(sample.digest)

    def notes(self) -> list[str]:
        notes = []
        for what, count in self._counts.items():
            if count:
                keys = self._without[what]
                shown = f": {', '.join(keys)}{', ...' if count > len(keys) else ''}" if keys else ""
                notes.append(f"{count:,} samples without {'an image' if what == 'image' else 'a label'} were skipped{shown}")
        return notes

    def told(self) -> str:
        """The notes as sentences."""
        return "".join(f". {note.capitalize()}" for note in self.notes())

    def _clear(self) -> None:
        for numbers in (self.shards, self.places, self.sizes, self.labels, self.digests):
            del numbers[:]

    def _miss(self, what: str, key: str) -> None:
        self._counts[what] += 1
        if len(self._without[what]) < _NAMED:
            self._without[what].append(f"'{writable_text(key)}'")

    def _label(self, sample: _Sample, shard: str) -> str | None:
        """The label of a sample as text; None: it has none."""
        if not self._ending:
            self._ending = next((ending for ending in _LABELS if ending in sample.labels), "")
        content = sample.labels.get(self._ending)
        if content is None:
            return None
        try:
            text = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"the label of '{writable_text(sample.key)}' in '{shard}' is no UTF-8 text") from None
        if self._ending == "json" or self._ending.endswith(".json"):
            text = self._of_json(text, sample.key, shard)
        return None if is_missing(text) else text

    def _of_json(self, text: str, key: str, shard: str) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"the .json of '{writable_text(key)}' in '{shard}' is damaged") from None
        if isinstance(value, dict):
            names = [self._options.key] if self._options.key is not None else [name for name in _KEYS if name in value]
            if not names or names[0] not in value:
                has = writable_text(", ".join(value)[:100]) or "nothing"
                raise DataError(
                    f"the .json of '{writable_text(key)}' in '{shard}' has no '{self._options.key or 'label'}'; it has {has}."
                    f" Name the label by --webdataset.key"
                )
            value = value[names[0]]
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise DataError(f"the label of '{writable_text(key)}' in '{shard}' is no whole number and no text")
        return str(value)


def _samples(shard: str) -> Iterator[_Sample]:
    """The samples of an archive in their order."""
    sample: _Sample | None = None
    for name, place, size, file in _files(shard):
        key, ending = _parted(name)
        if not ending:
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES:
            if sample.image is None:
                sample.image = place, size
                digest = hashlib.blake2b(f"{name}\0{size}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
                sample.digest = int.from_bytes(digest, "big")
        elif size <= _MOST_BYTES:
            file.seek(place)
            sample.labels[ending] = file.read(size)
    if sample is not None:
        yield sample


def _files(shard: str) -> Iterator[tuple[str, int, int, BinaryIO]]:
    """Name, place and size of each file in an archive, and the archive itself."""
    try:
        if not os.path.isfile(shard):
            raise DataError(f"there is no file '{shard}'")
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # which would grow for ever  # type: ignore[attr-defined]
                if member.isreg() and not member.issparse():
                    yield member.name, member.offset_data, member.size, file
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # the archive ends before its file does
                raise tarfile.ReadError("it is damaged inside")
    except DataError:
        raise
    except tarfile.ReadError as error:
        with open(shard, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        hint = ": it is compressed, so that nothing in it can be found. Unpack it by gunzip" if packed else f": {error}"
        raise DataError(f"'{shard}' is no .tar file, or a damaged one{hint}") from None
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"'{shard}' is no .tar file, or a damaged one: {' '.join(reason.split())}") from None


def _parted(name: str) -> tuple[str, str]:
    """The name of a file up to the first dot of its last part, and its ending in lower case; hidden files have none."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return (folder + slash + stem, ending.lower()) if stem else (name, "")


def _shards(root: Path) -> list[str]:
    """The archives that a path means.

    Raises:
        DataError: a pattern that means none, or too many.
    """
    if root.is_dir():
        return sorted(entry.path for entry in os.scandir(root) if _is_shard(entry))
    if root.exists() or "{" not in root.name:
        return [str(root)]
    names = _expanded(root.name, root)
    missing = [name for name in names if not (root.parent / name).is_file()]
    if missing:
        raise DataError(f"'{root}' means {len(names):,} files, but there is no '{root.parent / missing[0]}'")
    return [str(root.parent / name) for name in names]


def _expanded(name: str, root: Path) -> list[str]:
    """The names that a pattern with braces means: `{000..099}`, `{a,b}`."""
    match = _BRACES.search(name)
    if match is None:
        return [name]
    first, dots, last = match[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal() and len(first) < 10 and len(last) < 10:
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), min(int(last), int(first) + _MOST_SHARDS) + 1)]
    else:
        choices = match[1].split(",")
    rest = _expanded(name[match.end() :], root)
    if not choices or len(choices) * len(rest) > _MOST_SHARDS:
        raise DataError(f"'{root}' means {'no' if not choices else 'too many'} files; write {{000..099}} or {{a,b}}")
    return [name[: match.start()] + choice + ending for choice in choices for ending in rest]


def _is_shard(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(".tar") and not entry.name.startswith(".") and entry.is_file()


def _in_order(names: set[str]) -> list[str]:
    """Names of classes by number where all are numbers, else by letters."""
    are_numbers = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if are_numbers else sorted(names)


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [WebDataset]
