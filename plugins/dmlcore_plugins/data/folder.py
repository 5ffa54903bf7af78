"""Images in one sub-folder per class, also below folders named after the parts of a split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import dmlcore
from dmlcore.data import IMAGE_SUFFIXES, SPLIT_WORDS, DataSource, ImageOptions, Table, image_table
from dmlcore.errors import DataError
from dmlcore.files import expanded


class Folder(DataSource):
    """Images in one sub-folder per class. Deeper folders count for the class above them. Hidden ones are not read."""

    name = "folder"
    Options = ImageOptions
    reads = "a folder with a sub-folder per class"

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Every folder."""
        return path.is_dir()

    def load(self) -> Table:
        """Find the images and read as many as fit in memory.

        Raises:
            DataError: no such folder, no sub-folder, no image.
        """
        if not self.options.path:
            raise DataError("the data 'folder' needs a path: --data DIR, or --folder.path DIR")
        root = expanded(self.options.path)
        if not root.is_dir():
            raise DataError(f"there is no folder '{root}'")
        notes: list[str] = []
        classes, parts = self._classes(root, notes)
        paths: list[str] = []
        labels: list[int] = []
        splits: list[str] = []
        class_names = sorted({name for name, _, _ in classes})
        number = {name: label for label, name in enumerate(class_names)}
        ignored = 0
        for name, folder, part in classes:
            images, unread = _files(folder)
            ignored += unread
            paths += images
            labels += [number[name]] * len(images)
            splits += [part] * len(images)
        if not paths:
            raise DataError(f"folder '{root}' holds no images (known: {' '.join(sorted(IMAGE_SUFFIXES))}){self._hint(root)}")
        if ignored:
            notes.append(f"{ignored} files that are no images were ignored")
        table = image_table(
            paths,
            np.array(labels, dtype=np.int64),
            class_names,
            self.options,
            str(root),
            split=np.array(splits) if parts else None,
            image_size=self.image_size,
            default_image_size=self.default_image_size,
        )
        table.has_labels = table.class_names != [""]
        if len(table.class_names) == 1 and self.needs_labels:
            only = table.class_names[0]
            raise DataError(f"folder '{root}' holds one class, '{only}', but learning compares classes{self._hint(root)}")
        table.skipped = notes + table.skipped
        return table

    def _classes(self, root: Path, notes: list[str]) -> tuple[list[tuple[str, Path, str]], bool]:
        """Name, folder and part of the split of every class, and whether there are parts."""
        folders = _sub_folders(root)
        if not folders and not self.needs_labels:
            return [("", root, "")], False
        if not folders:
            raise DataError(
                f"folder '{root}' has no sub-folders: put the images of each class into a folder of its own{self._hint(root)}"
            )
        loose = _files(root, deep=False)[0]
        if loose:
            notes.append(f"{len(loose)} images directly in the folder belong to no class and were ignored")
        if len(folders) > 1 and all(folder.name.lower() in SPLIT_WORDS and _sub_folders(folder) for folder in folders):
            notes.append(f"the sub-folders {', '.join(folder.name for folder in folders)} are read as the parts of a split")
            return [(c.name, c, SPLIT_WORDS[folder.name.lower()]) for folder in folders for c in _sub_folders(folder)], True
        return [(folder.name, folder, "") for folder in folders], False

    def _hint(self, root: Path) -> str:
        manifests = sorted(root.glob("*.csv"))
        if manifests:
            return f". Did you mean the manifest '{manifests[0]}'?"
        folders = _sub_folders(root)
        if len(folders) == 1 and len(_sub_folders(folders[0])) > 1:
            return f". Did you mean '{folders[0]}'?"
        return ""


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, deep: bool = True) -> tuple[list[str], int]:
    """The image files below a folder in a fixed order, and the number of files that are none."""
    images: list[str] = []
    unread = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(os.path.join(place, name))
            elif not name.startswith("."):
                unread += 1
    return images, unread


@dmlcore.hookimpl
def dmlcore_datasets() -> list[type]:
    return [Folder]
